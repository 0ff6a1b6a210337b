"""AIPerf's metrics: their units and titles, by tag."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

# The suffixes of the columns that summarise a metric's lists, and their unit if it differs.
_SUFFIXES = {"count": "count", "mean": None, "min": None, "max": None}


class MetricInfo(Struct, frozen=True):
    """A metric's title, and the unit of its values on the bus, empty if unknown; times are in ``ns``."""

    title: str
    unit: str = ""


def describe(name: str) -> MetricInfo:
    """Describe a metric or a column such as ``<metric>.mean``; an unknown one has its name as title."""
    known = METRICS.get(name)
    if known is not None:
        return known
    base, _, suffix = name.rpartition(".")
    if base in METRICS and suffix in _SUFFIXES:
        unit = _SUFFIXES[suffix] or METRICS[base].unit
        return MetricInfo(f"{METRICS[base].title}, {suffix}", unit)
    return MetricInfo(name)


class BaseUnit(NamedTuple):
    """The unit that a metric is exported in, as Prometheus names it, and the factor that converts to it."""

    name: str
    factor: float

    def convert(self, value: float) -> float:
        """Return a value in the base unit; rounded once, so that 3e9 ns are 3 s."""
        return value * self.factor if self.factor >= 1.0 else value / round(1.0 / self.factor)


def base_unit(unit: str) -> BaseUnit:
    """Return the base unit of a unit on the bus; it has no name where values are plain numbers."""
    return _BASE_UNITS.get(unit, BaseUnit("", 1.0))


def readable_unit(unit: str) -> tuple[str, float]:
    """Return the unit that people read a metric in, and the factor that converts its values."""
    return {"ns": ("ms", 1e-6), "fraction": ("%", 100.0)}.get(unit, (unit, 1.0))


def format_number(value: float) -> str:
    """Return a number in at most nine characters."""
    size = abs(value)
    if 0 < size < 0.01 or size >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.{2 if size < 1e3 else 1 if size < 1e5 else 0}f}"


def readable(value: float | None, unit: str) -> str:
    """Return a value on the bus with its unit, as people read it; empty without one."""
    if value is None:
        return ""
    name, factor = readable_unit(unit)
    return f"{format_number(value * factor)} {name}".rstrip()


_BASE_UNITS = {
    "ns": BaseUnit("seconds", 1e-9),
    "sec": BaseUnit("seconds", 1.0),
    "ms/image": BaseUnit("seconds_per_image", 1e-3),
    "B": BaseUnit("bytes", 1.0),
    "MB": BaseUnit("bytes", 1e6),
    "ratio": BaseUnit("ratio", 1.0),
    "fraction": BaseUnit("ratio", 1.0),
    "%": BaseUnit("ratio", 1e-2),
    "tokens": BaseUnit("tokens", 1.0),
    "requests": BaseUnit("requests", 1.0),
    "images": BaseUnit("images", 1.0),
    "images/sec": BaseUnit("images_per_second", 1.0),
    "requests/sec": BaseUnit("requests_per_second", 1.0),
    "tokens/sec": BaseUnit("tokens_per_second", 1.0),
    "tokens/sec/user": BaseUnit("tokens_per_second", 1.0),
}

# From the metric classes of AIPerf 0.13.0 (tag, header, unit).
METRICS: dict[str, MetricInfo] = {
    "audio_duration": MetricInfo("Audio Duration", "sec"),
    "context_overflow_count": MetricInfo("Context Overflow Count", "requests"),
    "credit_drop_latency": MetricInfo("Credit Drop Latency", "ns"),
    "decode_duration": MetricInfo("Decode Duration", "ns"),
    "e2e_output_token_throughput": MetricInfo("E2E Output Token Throughput", "tokens/sec/user"),
    "error_isl": MetricInfo("Error Input Sequence Length", "tokens"),
    "error_request_count": MetricInfo("Error Request Count", "requests"),
    "good_request_count": MetricInfo("Good Request Count", "requests"),
    "http_req_blocked": MetricInfo("HTTP Blocked", "ns"),
    "http_req_chunks_received": MetricInfo("HTTP Chunks Received", "count"),
    "http_req_chunks_sent": MetricInfo("HTTP Chunks Sent", "count"),
    "http_req_connecting": MetricInfo("HTTP Connecting", "ns"),
    "http_req_connection_overhead": MetricInfo("HTTP Connection Overhead", "ns"),
    "http_req_connection_reused": MetricInfo("HTTP Connection Reused", "ratio"),
    "http_req_data_received": MetricInfo("HTTP Data Received", "B"),
    "http_req_data_sent": MetricInfo("HTTP Data Sent", "B"),
    "http_req_dns_lookup": MetricInfo("HTTP DNS Lookup", "ns"),
    "http_req_duration": MetricInfo("HTTP Duration (excl. conn)", "ns"),
    "http_req_receiving": MetricInfo("HTTP Receiving", "ns"),
    "http_req_sending": MetricInfo("HTTP Sending", "ns"),
    "http_req_total": MetricInfo("HTTP Total Time", "ns"),
    "http_req_waiting": MetricInfo("HTTP Waiting (TTFB)", "ns"),
    "image_latency": MetricInfo("Image Latency", "ms/image"),
    "image_throughput": MetricInfo("Image Throughput", "images/sec"),
    "input_sequence_length": MetricInfo("Input Sequence Length", "tokens"),
    "inter_chunk_latency": MetricInfo("Inter Chunk Latency", "ns"),
    "inter_token_latency": MetricInfo("Inter Token Latency", "ns"),
    "max_response_timestamp": MetricInfo("Maximum Response Timestamp", "ns"),
    "min_request_timestamp": MetricInfo("Minimum Request Timestamp", "ns"),
    "num_images": MetricInfo("Number of Images", "images"),
    "osl_mismatch_count": MetricInfo("OSL Mismatch Count", "requests"),
    "osl_mismatch_diff_pct": MetricInfo("OSL Mismatch Diff %", "%"),
    "output_sequence_length": MetricInfo("Output Sequence Length", "tokens"),
    "output_token_count": MetricInfo("Output Token Count", "tokens"),
    "output_token_throughput_per_user": MetricInfo("Output Token Throughput Per User", "tokens/sec/user"),
    "prefill_throughput_per_user": MetricInfo("Prefill Throughput Per User", "tokens/sec/user"),
    "reasoning_token_count": MetricInfo("Reasoning Token Count", "tokens"),
    "replay_send_schedule_offset": MetricInfo("Replay Send Schedule Offset", "ns"),
    "request_count": MetricInfo("Request Count", "requests"),
    "request_latency": MetricInfo("Request Latency", "ns"),
    "requested_osl": MetricInfo("Requested OSL", "tokens"),
    "rtfx": MetricInfo("Inverse Real-Time Factor (RTFx)", "ratio"),
    "spec_decode_acceptance_length": MetricInfo("Acceptance Length", "ratio"),
    "spec_decode_accepted_draft_tokens": MetricInfo("Accepted Draft Tokens", "tokens"),
    "spec_decode_accepted_per_verified": MetricInfo("Accepted per Verified", "ratio"),
    "spec_decode_draft_acceptance_rate": MetricInfo("Draft Acceptance Rate", "%"),
    "spec_decode_draft_tokens": MetricInfo("Draft Tokens", "tokens"),
    "spec_decode_steps": MetricInfo("Spec Decode Steps", "count"),
    "stream_prefill_latency": MetricInfo("Stream Prefill Latency", "ns"),
    "stream_setup_latency": MetricInfo("Stream Setup Latency", "ns"),
    "thinking_efficiency": MetricInfo("Thinking Efficiency", "ratio"),
    "time_to_first_output_token": MetricInfo("Time to First Output Token", "ns"),
    "time_to_first_token": MetricInfo("Time to First Token", "ns"),
    "time_to_second_token": MetricInfo("Time to Second Token", "ns"),
    "usage_accepted_prediction_tokens": MetricInfo("Usage Accepted Prediction Tokens", "tokens"),
    "usage_completion_audio_tokens": MetricInfo("Usage Completion Audio Tokens", "tokens"),
    "usage_completion_tokens": MetricInfo("Usage Completion Tokens", "tokens"),
    "usage_completion_tokens_diff_pct": MetricInfo("Usage Completion Diff %", "%"),
    "usage_discrepancy_count": MetricInfo("Usage Discrepancy Count", "requests"),
    "usage_prompt_audio_seconds": MetricInfo("Usage Prompt Audio Seconds", "sec"),
    "usage_prompt_audio_tokens": MetricInfo("Usage Prompt Audio Tokens", "tokens"),
    "usage_prompt_cache_miss_tokens": MetricInfo("Usage Prompt Cache Miss Tokens", "tokens"),
    "usage_prompt_cache_read_tokens": MetricInfo("Usage Prompt Cache Read Tokens", "tokens"),
    "usage_prompt_cache_write_tokens": MetricInfo("Usage Prompt Cache Write Tokens", "tokens"),
    "usage_prompt_tokens": MetricInfo("Usage Prompt Tokens", "tokens"),
    "usage_prompt_tokens_diff_pct": MetricInfo("Usage Prompt Diff %", "%"),
    "usage_reasoning_tokens": MetricInfo("Usage Reasoning Tokens", "tokens"),
    "usage_reasoning_tokens_diff_pct": MetricInfo("Usage Reasoning Diff %", "%"),
    "usage_rejected_prediction_tokens": MetricInfo("Usage Rejected Prediction Tokens", "tokens"),
    "usage_tool_use_prompt_tokens": MetricInfo("Usage Tool Use Prompt Tokens", "tokens"),
    "usage_total_tokens": MetricInfo("Usage Total Tokens", "tokens"),
    "video_inference_time": MetricInfo("Video Inference Time", "sec"),
    "video_peak_memory": MetricInfo("Video Peak Memory", "MB"),
}
