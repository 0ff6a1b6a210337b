// The page: what the server tells by events, shown. Texts from outside become text nodes, never markup.
import { Charts, duration, number } from "./charts.js";

const MOST_SHOWN = 6;
const $ = (id) => document.getElementById(id);
const runs = new Map(); // id: its line in the list
const details = new Map(); // id: { run, statistics, axis, columns } of those that are shown
const rows = new Map(); // id: its element in the list
const heads = new Map(); // id: its element above the charts
const charts = new Charts($("charts"));
let shown = [];
let bus = null;
let source = null;
let build = null;
let drawing = false;

// ---- elements ----

const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
};
const cell = (text, kind = "") => h("td", { class: kind }, text);
const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const share = (part) => `${(part * 100).toFixed(part > 0 && part < 0.001 ? 3 : part < 0.1 ? 2 : 1)} %`;
const bar = (value, bad = false) => {
  const attributes = { max: 1, class: bad ? "bad" : "" };
  const element = h("progress", attributes);
  if (value !== null && value !== undefined) element.value = value;
  element.setAttribute("aria-label", "progress");
  return element;
};
const KINDS = {
  completed: "good", passed: "good", done: "good", ready: "good", failed: "bad", lost: "bad", silent: "bad", cut: "bad",
  cancelled: "wait", unknown: "wait", waiting: "wait", starting: "wait",
};
const SIGNS = { passed: "✓ ", failed: "✗ ", unknown: "? " };
const badge = (word, sign = "") => h("span", { class: `badge ${KINDS[word] ?? ""}` }, sign + word);
const placeOf = (id) => shown.indexOf(id) + 1;
const swatch = (id) => h("span", { class: `swatch run-${placeOf(id)}` });
const runCell = (id) => h("td", { class: "run-cell" }, swatch(id), short(id));
const short = (id) => (id.length > 14 ? `${id.slice(0, 12)}…` : id);
const clock = (ns) => new Date(ns / 1e6).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
const lasted = (run) => ((run.ended_ns ?? Date.now() * 1e6) - run.began_ns) / 1e9;

const fill = (id, made) => {
  $(id).hidden = !made.length;
  $(id).querySelector("tbody").replaceChildren(...made);
};

// ---- the list of runs ----

const listed = () => [...runs.values()].sort((a, b) => b.began_ns - a.began_ns);

const drawList = () => {
  const order = listed();
  $("run-count").textContent = order.length ? String(order.length) : "";
  $("empty").hidden = order.length > 0;
  for (const [id, row] of rows) {
    if (!runs.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  order.forEach((run, place) => {
    if (!rows.has(run.id)) rows.set(run.id, newRow(run.id));
    const row = rows.get(run.id);
    if (row.drawn !== run || row.place !== placeOf(run.id)) drawRow(row, run);
    const list = $("runs");
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
};

const newRow = (id) => {
  const row = h("li");
  row.box = h("input", { type: "checkbox", onchange: () => compare(id) });
  row.box.setAttribute("aria-label", "show beside others");
  row.button = h("button", { type: "button", onclick: () => show([id]) });
  row.append(row.box, row.button);
  return row;
};

const drawRow = (row, run) => {
  const place = placeOf(run.id);
  Object.assign(row, { drawn: run, place });
  row.className = place ? `shown run-${place}` : "";
  row.box.checked = place > 0;
  row.button.setAttribute("aria-current", place > 0);
  row.button.title = run.id;
  const failed = run.thresholds.failed;
  const what = [`${count(run.requests)} requests`, run.label || run.model];
  row.button.replaceChildren(
    h("span", { class: "name" }, h("b", {}, run.id), badge(run.status)),
    h("span", { class: "more" }, what.filter(Boolean).join(" · ")),
    h("span", { class: "more" }, failed ? h("b", { class: "bad" }, `✗ ${failed} failed · `) : "", clock(run.began_ns)),
    ...(run.status === "running" ? [bar(run.progress)] : []),
  );
};

// ---- which runs are shown ----

const show = (ids, { following = false } = {}) => {
  if (!following) $("follow").checked = false;
  shown = ids.slice(0, MOST_SHOWN);
  for (const id of details.keys()) if (!shown.includes(id)) details.delete(id);
  remember();
  connect();
  drawList();
  draw();
};

const compare = (id) => {
  const others = shown.filter((each) => each !== id);
  show(others.length < shown.length ? others : [...shown, id].slice(-MOST_SHOWN));
};

const follow = () => {
  if (!$("follow").checked || !runs.size) return;
  const latest = listed()[0].id;
  if (shown.length !== 1 || shown[0] !== latest) show([latest], { following: true });
};

const remember = () => {
  const chosen = $("follow").checked ? "" : shown.map(encodeURIComponent).join(",");
  history.replaceState(null, "", chosen ? `#runs=${chosen}` : location.pathname);
};

const step = (by) => {
  const order = listed();
  if (!order.length) return;
  const at = order.findIndex((run) => run.id === shown[0]);
  const next = order[Math.min(Math.max(at + by, 0), order.length - 1)];
  show([next.id]);
  rows.get(next.id).button.focus();
  rows.get(next.id).scrollIntoView({ block: "nearest" });
};

// ---- a run ----

const main = (statistics) => {
  const phases = (statistics?.numbers ?? []).filter((phase) => phase.index >= 0 && phase.requests);
  return phases.findLast((phase) => phase.kind !== "warmup") ?? phases.at(-1);
};

// Its elements stay as long as the run is shown, so that a button keeps its focus.
const newHead = (id) => {
  const made = h("section");
  Object.assign(made, { headline: h("span"), badges: h("span", { class: "badges" }), body: h("div") });
  const save = h("button", { type: "button", title: "The report as one file (s)", onclick: () => saveReport(id) }, "Save report");
  made.append(h("h2", {}, made.headline, made.badges, save), made.body);
  return made;
};

const drawHead = (id) => {
  if (!heads.has(id)) heads.set(id, newHead(id));
  const made = heads.get(id);
  made.className = `card head run-${placeOf(id)}`;
  made.headline.replaceChildren(...(shown.length > 1 ? [swatch(id)] : []), id);
  const { run, statistics } = details.get(id) ?? {};
  if (!run) {
    made.body.replaceChildren(h("p", { class: "facts" }, "loading"));
    return made;
  }
  const facts = [run.model, run.label, run.producer, run.urls, run.sweep && `sweep ${run.sweep}`, clock(run.began_ns), duration(lasted(run))];
  const problems = [
    run.reason,
    run.dropped_records ? `${count(run.dropped_records)} records were dropped, and are in no number` : "",
    statistics?.missing ? `${count(statistics.missing)} records are missing` : "",
    statistics?.problem ? `Its statistics cannot be read: ${statistics.problem}` : "",
  ].filter(Boolean);
  const verdicts = Object.entries(run.thresholds).filter(([, many]) => many);
  made.badges.replaceChildren(badge(run.status),
    ...verdicts.map(([state, many]) => h("span", { class: `badge ${KINDS[state]}` }, `${SIGNS[state]}${many} ${state}`)));
  made.body.replaceChildren(
    h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    ...problems.map((problem) => h("p", { class: "problem" }, problem)),
    tiles(run, main(statistics)));
  return made;
};

const drawHeads = () => {
  const wanted = shown.filter((id) => runs.has(id));
  for (const id of heads.keys()) if (!wanted.includes(id)) heads.delete(id);
  const made = wanted.map(drawHead);
  const there = [...$("heads").children];
  if (made.length !== there.length || made.some((each, place) => each !== there[place])) $("heads").replaceChildren(...made);
};

const tiles = (run, phase) => {
  const list = h("dl", { class: "tiles" });
  const tile = (name, value, unit, ...more) => {
    if (value === "–") return;
    list.append(h("div", {}, h("dt", {}, name), h("dd", {}, value, unit ? h("small", {}, ` ${unit}`) : ""), ...more));
  };
  if (run.status === "running") {
    tile(run.phase || "progress", run.progress === null ? "…" : `${Math.floor(run.progress * 100)} %`, "", bar(run.progress));
  }
  tile("requests", count(phase?.requests ?? run.requests));
  if (phase) {
    tile("failed", share(phase.failed / phase.requests), "");
    tile("throughput", number(phase.request_throughput), "/s");
    tile("latency p50", number(phase.request_latency?.p50), "ms");
    tile("latency p99", number(phase.request_latency?.p99), "ms");
    tile("TTFT p50", number(phase.time_to_first_token?.p50), "ms");
    tile("TTFT p99", number(phase.time_to_first_token?.p99), "ms");
    tile("ITL p50", number(phase.inter_token_latency?.p50), "ms");
    tile("output", number(phase.output_token_throughput), "tokens/s");
  }
  return list;
};

const thresholdRows = (id) => {
  const run = details.get(id)?.run;
  return (run?.judged ?? []).map((each) => {
    const [since] = each.changes.at(-1);
    const remarks = [each.final ? "final" : "", each.abort ? "ends the run" : "", each.reason].filter(Boolean);
    return h("tr", {}, runCell(id), h("td", {}, badge(each.state, SIGNS[each.state])), cell(each.threshold, "long"),
      cell(each.value || "–", "number"), cell(each.limit || "–", "number"), cell(count(each.samples), "number"),
      cell(duration((since - run.began_ns) / 1e9)), cell(remarks.join("; ")));
  });
};

const percentiles = (metric, ...names) => (metric ? names.map((name) => number(metric[name])).join(" · ") : "–");

const phaseRows = (id) => {
  const { run, statistics } = details.get(id) ?? {};
  const numbers = new Map((statistics?.numbers ?? []).map((phase) => [`${phase.index} ${phase.name}`, phase]));
  const told = (run?.phases ?? []).map((phase) => [phase, numbers.get(`${phase.index} ${phase.name}`)]);
  const known = new Set(told.map(([phase]) => `${phase.index} ${phase.name}`));
  const others = [...numbers].filter(([key]) => !known.has(key)).map(([, phase]) => [null, phase]);
  return [...told, ...others].map(([phase, stats]) => {
    const { name, index } = phase ?? stats;
    const goal = phase?.requests ? `of ${count(phase.requests)}` : phase?.duration_s ? `for ${duration(phase.duration_s)}` : "";
    const state = phase?.state ?? "";
    const failed = stats?.failed ?? phase?.errors ?? 0;
    return h("tr", { class: index < 0 ? "overall" : "" }, runCell(id), cell(name, "long"),
      h("td", { class: "progress" }, state ? badge(state) : "", " ", h("span", { class: "soft" }, goal),
        phase && ["sending", "waiting"].includes(state) ? bar(phase.progress) : ""),
      cell(count(stats?.requests ?? phase?.completed ?? 0), "number"),
      cell(count(failed), `number ${failed ? "bad" : ""}`),
      cell(phase?.in_flight ? count(phase.in_flight) : "–", "number"),
      cell(number(stats?.request_throughput), "number"), cell(number(stats?.output_token_throughput), "number"),
      cell(percentiles(stats?.request_latency, "p50", "p90", "p99"), "number"),
      cell(percentiles(stats?.time_to_first_token, "p50", "p90", "p99"), "number"),
      cell(percentiles(stats?.inter_token_latency, "p50", "p99"), "number"));
  });
};

const errorRows = (id) => {
  const statistics = details.get(id)?.statistics;
  const errors = [...(statistics?.errors ?? [])];
  if (statistics?.other_errors) errors.push({ type: "other types", code: null, count: statistics.other_errors });
  const all = errors.reduce((sum, error) => sum + error.count, 0);
  return errors.map((error) => h("tr", {}, runCell(id), cell(error.type, "long"), cell(error.code === null ? "–" : String(error.code), "number"),
    cell(count(error.count), "number"), h("td", {}, bar(error.count / all, true))));
};

const receiptRows = (id) => (details.get(id)?.run?.receipts ?? []).map((receipt) => h("tr", {}, runCell(id), cell(receipt.consumer),
  h("td", { class: receipt.whole ? "good" : "bad" }, receipt.whole ? "✓ all" : `✗ ${receipt.lost ? `${count(receipt.lost)} lost` : "not all"}`),
  cell(count(receipt.published), "number"), cell(count(receipt.handled), "number"),
  cell(count(receipt.failed), `number ${receipt.failed ? "bad" : ""}`), cell(count(receipt.missed), `number ${receipt.missed ? "bad" : ""}`),
  cell(`${number(receipt.worst_lag_s)} s`, "number")));

const consumerRows = () => (bus?.consumers ?? []).map((each) => h("tr", {}, cell(each.name + (each.group ? " (group)" : "")),
  h("td", {}, badge(each.state), each.silent_s && each.state === "ready" ? h("span", { class: "wait" }, ` silent for ${each.silent_s} s`) : ""),
  cell(each.behind === null ? "–" : count(each.behind), "number"), cell(count(each.received), "number"),
  cell(count(each.failed), `number ${each.failed ? "bad" : ""}`), cell(`${each.host} ${each.pid}`, "soft")));

const chartOf = (id) => {
  const { run, axis, columns } = details.get(id) ?? {};
  if (!run || !axis || !columns?.throughput?.length) return null;
  const seconds = (ns) => (ns - run.began_ns) / 1e9;
  const first = seconds(axis.start_ns);
  const end = first + columns.throughput.length * axis.width_s;
  return {
    id,
    short: short(id),
    place: placeOf(id),
    columns,
    // Each value is that of the window that ends there.
    seconds: columns.throughput.map((_, place) => first + (place + 1) * axis.width_s),
    phases: run.phases.filter((phase) => phase.start_ns !== null)
      .map((phase) => ({ name: phase.name, from: seconds(phase.start_ns), to: phase.end_ns === null ? end : seconds(phase.end_ns) })),
    failures: run.judged.flatMap((each) => each.changes).filter(([, state]) => state === "failed").map(([ns]) => seconds(ns)),
  };
};

const draw = () => {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    $("main").classList.toggle("several", shown.length > 1);
    $("runs").classList.toggle("several", shown.length > 1);
    drawHeads();
    fill("thresholds", shown.flatMap(thresholdRows));
    fill("phases", shown.flatMap(phaseRows));
    fill("errors", shown.flatMap(errorRows));
    fill("receipts", shown.flatMap(receiptRows));
    fill("consumers", consumerRows());
    charts.draw(shown.map(chartOf).filter(Boolean));
    const only = shown.length === 1 ? details.get(shown[0])?.run : null;
    const failed = only?.thresholds.failed ? "✗ " : "";
    document.title = only ? `${failed}${only.status === "running" && only.progress !== null ? `${Math.floor(only.progress * 100)} % ` : ""}${short(only.id)} – phase-bus` : "phase-bus";
  });
};

// ---- what the server says ----

const takeRuns = (news) => {
  if (news.all) runs.clear();
  for (const run of news.runs) runs.set(run.id, run);
  for (const id of news.gone) runs.delete(id);
  drawList();
  drawState();
  follow();
  draw();
};

const detail = (id) => {
  if (!details.has(id)) details.set(id, {});
  return details.get(id);
};

const takeRun = (run) => {
  if (!shown.includes(run.id)) return;
  const known = detail(run.id);
  for (const each of known.run ? run.judged : []) {
    const before = known.run.judged.find((other) => other.threshold === each.threshold && other.phase === each.phase && other.by === each.by);
    if (before && before.state !== each.state) $("announce").textContent = `${each.threshold}: ${each.state}`;
  }
  known.run = run;
  draw();
};

const takeStatistics = (news) => {
  if (!shown.includes(news.id)) return;
  const known = detail(news.id);
  known.statistics = news;
  if (news.windows) {
    const { from, start_ns, width_s, columns } = news.windows;
    known.axis = { start_ns, width_s };
    const before = from ? known.columns ?? {} : {};
    known.columns = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, [...(before[name] ?? []).slice(0, from), ...values]]));
  }
  draw();
};

const takeBus = (news) => {
  bus = news;
  drawState();
  draw();
};

const drawState = (lost = false) => {
  const state = $("state");
  if (lost) {
    state.className = "state bad";
    const over = runs.size && ![...runs.values()].some((run) => run.status === "running");
    state.textContent = `no connection; trying again${over ? ". The journal has the runs: phase-bus report latest" : ""}`;
  } else if (bus?.answers === false) {
    state.className = "state bad";
    state.textContent = "the bus does not answer; trying again";
    state.title = bus.problem;
  } else {
    state.className = "state good";
    state.title = "";
    const going = [...runs.values()].filter((run) => run.status === "running").length;
    const told = bus?.answers ? `bus ${bus.bus_id} · ${count(bus.events)} events` : "connected";
    state.textContent = `${told} · ${going || "no"} run${going === 1 ? "" : "s"} going on`;
  }
};

const connect = () => {
  source?.close();
  const asked = shown.map((id) => `run=${encodeURIComponent(id)}`).join("&");
  const opened = new EventSource(`events?${asked}`);
  source = opened;
  const on = (kind, take) => opened.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  on("page", (news) => {
    if (build !== null && build !== news.build) location.reload(); // another version serves it now
    build = news.build;
  });
  on("runs", takeRuns);
  on("run", takeRun);
  on("statistics", takeStatistics);
  on("bus", takeBus);
  opened.onopen = () => drawState();
  opened.onerror = () => {
    if (source !== opened) return;
    drawState(true);
    if (opened.readyState === EventSource.CLOSED) setTimeout(begin, 2000); // it was refused
  };
};

// ---- the report ----

const notify = (text) => {
  $("notice").textContent = text;
  $("notice").hidden = !text;
};

const saveReport = async (id) => {
  notify(`Making the report of run ${id} …`);
  try {
    const answer = await fetch(`report?run=${encodeURIComponent(id)}`);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: nameOf(answer, id) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    notify("");
  } catch (error) {
    notify(`No report: ${error.message}. Where the bus is, 'phase-bus report RUN --format html' gives it too.`);
  }
};

const nameOf = (answer, id) => /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? `phase-bus-${id.replace(/[^\w.-]+/g, "-")}.html`;

// ---- theme and keys ----

const THEMES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

const drawTheme = () => {
  const chosen = localStorage.getItem("theme") ?? "system";
  const dark = chosen === "dark" || (chosen === "system" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = `Theme: ${chosen}`;
  charts.repaint();
};

const nextTheme = () => {
  const chosen = localStorage.getItem("theme") ?? "system";
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
  drawTheme();
};

const toggleKeys = () => {
  $("key-list").hidden = !$("key-list").hidden;
  $("keys").setAttribute("aria-expanded", !$("key-list").hidden);
};

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  x: () => {
    const focused = [...rows].find(([, row]) => row.contains(document.activeElement));
    if (focused) compare(focused[0]);
  },
  f: () => $("follow").click(),
  s: () => shown.length && saveReport(shown[0]),
  t: nextTheme,
  "?": toggleKeys,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  if ($("content").hidden || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});
$("theme").addEventListener("click", nextTheme);
$("keys").addEventListener("click", toggleKeys);
$("follow").addEventListener("change", () => (follow(), remember()));
system.addEventListener("change", drawTheme);

// ---- the beginning ----

const logIn = (token) => fetch("login", { method: "POST", headers: { Authorization: `Bearer ${token}` } });

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await logIn($("token").value);
  $("login-problem").textContent = answer.ok ? "" : "That is not the token.";
  if (answer.ok) {
    $("token").value = "";
    begin();
  }
});

const begin = async () => {
  const answer = await fetch("session").catch(() => null);
  if (answer === null) {
    setTimeout(begin, 2000);
    return;
  }
  const refused = answer.status === 401;
  $("login").hidden = !refused;
  $("content").hidden = refused;
  if (refused) {
    source?.close();
    $("state").className = "state";
    $("state").textContent = "a token is needed";
    $("token").focus();
  } else {
    connect();
  }
};

const chosen = new URLSearchParams(location.hash.slice(1));
drawTheme();
if (chosen.has("runs")) {
  shown = location.hash.slice(1).replace(/^runs=/, "").split(",").map(decodeURIComponent).slice(0, MOST_SHOWN);
  $("follow").checked = false;
}
if (chosen.has("token")) {
  history.replaceState(null, "", location.pathname);
  logIn(chosen.get("token")).catch(() => null).then(begin);
} else {
  begin();
}
