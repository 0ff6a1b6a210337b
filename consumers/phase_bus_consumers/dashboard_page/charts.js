// The charts over time: one for each quantity, with a line or two for each run that is shown.
/* global uPlot */

const QUANTITIES = [
  { key: "throughput", title: "Throughput", unit: "requests/s", lines: [["throughput", "successful"], ["failed", "failed"]] },
  { key: "request_latency", title: "Request latency", unit: "ms", lines: [["request_latency.p50", "p50"], ["request_latency.p99", "p99"]] },
  { key: "time_to_first_token", title: "Time to first token", unit: "ms", lines: [["time_to_first_token.p50", "p50"], ["time_to_first_token.p99", "p99"]] },
  { key: "inter_token_latency", title: "Inter-token latency", unit: "ms", lines: [["inter_token_latency.p50", "p50"], ["inter_token_latency.p99", "p99"]] },
];

export const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if ((size > 0 && size < 0.01) || size >= 1e7) return value.toExponential(1);
  return value.toLocaleString("en", { maximumFractionDigits: size < 10 ? 2 : size < 1000 ? 1 : 0 });
};

export const duration = (seconds) => {
  const whole = Math.max(Math.round(seconds), 0);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (part) => String(part).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Chart {
  constructor(quantity, place) {
    this.quantity = quantity;
    this.plot = null;
    this.shape = "";
    this.figure = document.createElement("figure");
    this.figure.className = "card chart";
    this.figure.dataset.chart = quantity.key;
    const title = document.createElement("h2");
    title.textContent = quantity.title;
    const unit = document.createElement("span");
    unit.className = "soft";
    unit.textContent = quantity.unit;
    title.append(unit);
    this.legend = document.createElement("figcaption");
    this.legend.className = "legend";
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.figure.append(title, this.legend, this.place);
    place.append(this.figure);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.place);
  }

  size() {
    return { width: Math.max(this.place.clientWidth, 100), height: Math.max(this.place.clientHeight, 100) };
  }

  draw(runs) {
    const lines = runs.flatMap((run) =>
      this.quantity.lines
        .filter(([column]) => run.columns[column] && (column !== "failed" || (runs.length === 1 && run.columns.failed.some(Boolean))))
        .map(([column, name], place) => ({ run, column, name, place })));
    this.figure.hidden = !lines.length;
    if (!lines.length) return;
    this.runs = runs;
    this.lines = lines;
    const tables = runs
      .map((run) => [run, lines.filter((line) => line.run === run)])
      .filter(([, own]) => own.length)
      .map(([run, own]) => [run.seconds, ...own.map((line) => run.columns[line.column])]);
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    this.figure.ariaLabel = `${this.quantity.title} over time, ${data[0].length} points`;
    const shape = JSON.stringify([runs.length > 1, lines.map((line) => [line.run.id, line.run.place, line.column])]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data);
    } else {
      this.plot?.destroy();
      this.shape = shape;
      this.plot = new uPlot(this.options(lines, runs.length > 1), data, this.place);
    }
    this.tell(null);
  }

  // The class that gives a line its colour: of its run where there are several, else of what it means.
  tint(line) {
    if (line.column === "failed") return "failed-line";
    if (this.runs.length > 1) return `run-${line.run.place}`;
    return line.place ? "high" : "low";
  }

  stroke(line) {
    const names = { "failed-line": "--bad", low: "--run-1", high: "--high" };
    return () => colour(names[this.tint(line)] ?? `--${this.tint(line)}`);
  }

  options(lines, several) {
    const axis = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
    const font = `${Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.82)}px system-ui, sans-serif`;
    const dashed = (line) => several && line.place === 0 && this.quantity.key !== "throughput";
    return {
      ...this.size(),
      legend: { show: false },
      cursor: { sync: { key: "time" }, points: { size: 6 }, focus: { prox: 24 } },
      scales: { x: { time: false }, y: { range: (_u, _low, high) => [0, high > 0 ? high * 1.2 : 1] } },
      axes: [
        { ...axis, font, values: (_u, ticks) => ticks.map(duration), space: 64, size: 30,
          incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400] },
        { ...axis, font, values: (_u, ticks) => ticks.map(number), size: 56 },
      ],
      series: [{}, ...lines.map((line) => ({
        label: line.name,
        stroke: this.stroke(line),
        width: several && !dashed(line) ? 2 : 1.6,
        dash: dashed(line) ? [3, 3] : undefined,
      }))],
      hooks: {
        drawClear: [(plot) => several || this.bands(plot)],
        draw: [(plot) => several || this.marks(plot)],
        setCursor: [(plot) => this.tell(plot.cursor.idx)],
      },
    };
  }

  // Every other phase has a background.
  bands(plot) {
    const { left, top, width, height } = plot.bbox;
    plot.ctx.save();
    plot.ctx.beginPath();
    plot.ctx.rect(left, top, width, height);
    plot.ctx.clip();
    plot.ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    plot.ctx.textAlign = "left";
    plot.ctx.textBaseline = "alphabetic";
    this.runs[0].phases.forEach((phase, place) => {
      const [from, to] = [phase.from, phase.to].map((at) => Math.max(plot.valToPos(at, "x", true), left));
      plot.ctx.fillStyle = colour("--band");
      if (place % 2 === 0) plot.ctx.fillRect(from, top, to - from, height);
      plot.ctx.fillStyle = colour("--soft");
      if (to - from > plot.ctx.measureText(phase.name).width + 8) {
        plot.ctx.fillText(phase.name, from + 4 * devicePixelRatio, top + 13 * devicePixelRatio);
      }
    });
    plot.ctx.restore();
  }

  // A line where a threshold failed.
  marks(plot) {
    const { left, top, width, height } = plot.bbox;
    plot.ctx.save();
    plot.ctx.strokeStyle = colour("--bad");
    plot.ctx.lineWidth = devicePixelRatio;
    plot.ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const at of this.runs[0].failures) {
      const x = plot.valToPos(at, "x", true);
      if (x < left || x > left + width) continue;
      plot.ctx.beginPath();
      plot.ctx.moveTo(x, top);
      plot.ctx.lineTo(x, top + height);
      plot.ctx.stroke();
    }
    plot.ctx.restore();
  }

  // The values at the cursor, or the last ones.
  tell(index) {
    if (!this.plot) return;
    const [seconds, ...columns] = this.plot.data;
    const valueOf = (line) => {
      const values = columns[this.lines.indexOf(line)];
      let at = index ?? values.length - 1;
      while (index === null && at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
      return number(values[at]);
    };
    const entry = (line, text) => {
      const part = document.createElement("span");
      const stroke = document.createElement("i");
      stroke.className = this.tint(line);
      part.append(stroke, text);
      return part;
    };
    const several = this.runs.length > 1;
    const parts = several
      ? this.runs.flatMap((run) => {
          const own = this.lines.filter((line) => line.run === run);
          return own.length ? [entry(own[0], `${run.short} ${own.map(valueOf).join(" · ")}`)] : [];
        })
      : this.lines.map((line) => entry(line, `${line.name} ${valueOf(line)}`));
    if (several && this.lines.some((line) => line.place)) {
      const which = document.createElement("span");
      which.className = "soft";
      which.textContent = "dotted p50 · p99";
      parts.push(which);
    }
    if (index !== null && index !== undefined) {
      const when = document.createElement("span");
      when.className = "soft";
      when.textContent = `at ${duration(seconds[index])}`;
      parts.push(when);
    }
    this.legend.replaceChildren(...parts);
  }
}

export class Charts {
  constructor(place) {
    this.charts = QUANTITIES.map((quantity) => new Chart(quantity, place));
  }

  // Each run: id, short, place (1 ...), seconds, columns by name, phases and failures in seconds.
  draw(runs) {
    for (const chart of this.charts) chart.draw(runs);
  }

  repaint() {
    for (const chart of this.charts) {
      chart.plot?.redraw();
      if (chart.plot) chart.tell(null);
    }
  }
}
