"use strict";
/* global uPlot */
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const LANE_PX = 15; // of the phases' names above a plot
  const DASHES = { dashed: [7, 4], dotted: [2, 3] };

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  const number = (value) => {
    const size = Math.abs(value);
    if ((size > 0 && size < 0.01) || size >= 1e7) return value.toExponential(1);
    return value.toLocaleString("en", { maximumFractionDigits: size < 10 ? 2 : size < 1000 ? 1 : 0 });
  };

  // The ticks of an axis, with as many digits as tell them apart.
  const ticked = (ticks) => {
    const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : 1;
    const whole = (digits) => Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-6;
    let digits = 0;
    while (digits < 8 && !whole(digits)) digits += 1;
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return ticks.map((tick) => (tick >= 1e7 ? tick.toExponential(1) : tick.toLocaleString("en", options)));
  };

  // What fits of a text into so many pixels of the canvas.
  const fitting = (context, text, width) => {
    if (context.measureText(text).width <= width) return text;
    let left = text.length;
    while (left > 0 && context.measureText(`${text.slice(0, left)}…`).width > width) left -= 1;
    return left ? `${text.slice(0, left)}…` : "";
  };

  class Plot {
    constructor(place, figure) {
      this.place = place;
      this.figure = figure;
      this.legend = place.previousElementSibling;
      this.lanes = figure.bands.length ? Math.min(Math.ceil((figure.bands.length + 1) / 2), 3) : 0;
      this.plot = new uPlot(this.options(), [figure.x.values, ...figure.series.map((each) => each.y)], place);
      this.entries = figure.series.map((series, index) => this.entry(series, index + 1));
      this.where = document.createElement("span");
      this.where.className = "where";
      this.legend.append(this.where);
      this.tell();
      new ResizeObserver(() => this.fit()).observe(place);
    }

    fit(width) {
      this.plot.setSize(this.size(width));
    }

    size(width = this.place.clientWidth) {
      return { width: Math.max(width, 100), height: Math.max(this.place.clientHeight, 100) };
    }

    options() {
      const { x, y, series, over_time: overTime } = this.figure;
      const axis = {
        stroke: () => colour("soft"),
        font: `12px ${FONTS}`,
        labelFont: `12px ${FONTS}`,
        labelSize: 18,
        labelGap: 2,
        grid: { stroke: () => colour("grid"), width: 1 },
        ticks: { show: false },
      };
      const marks = x.labels ? x.labels.map((_, place) => place) : x.ticks?.length ? x.ticks : null;
      return {
        ...this.size(),
        padding: [this.lanes ? this.lanes * LANE_PX + 4 : 10, 14, 0, 0],
        legend: { show: false },
        cursor: {
          y: false,
          drag: { x: !x.labels, y: false, setScale: !x.labels },
          ...(overTime ? { sync: { key: "time" } } : {}),
          points: { size: 7 },
        },
        scales: {
          // A look at all of it is one from end to end, not from the first value to the last.
          x: { time: false, distr: x.log ? 3 : 1, range: (_plot, low, high) => (this.zoomed ? [low, high] : x.range) },
          y: { range: (plot, low, high) => this.height(plot, low, high) },
        },
        axes: [
          {
            ...axis,
            label: x.title || undefined,
            size: 28,
            ...(marks ? { splits: () => marks, filter: (_plot, all) => all } : { space: 60 }),
            values: (plot, ticks) => (x.labels ? this.names(plot, ticks) : x.log ? this.sparse(plot, ticks) : ticked(ticks)),
          },
          { ...axis, label: y.title, values: (_plot, ticks) => ticked(ticks), size: 58 },
        ],
        series: [{}, ...series.map((each) => this.line(each))],
        hooks: {
          drawClear: [(plot) => this.bands(plot)],
          draw: [(plot) => this.levels(plot), (plot) => this.marks(plot)],
          setCursor: [() => this.tell()],
          setSelect: [(plot) => { this.zoomed = this.zoomed || plot.select.width > 0; }],
        },
      };
    }

    line(each) {
      const bare = each.line === "none";
      return {
        label: each.name,
        show: !each.hidden,
        stroke: () => colour(each.color),
        fill: each.fill ? () => `${colour(each.color)}33` : undefined,
        width: bare ? 0 : 1.8,
        dash: DASHES[each.line],
        paths: bare ? () => null : each.line === "steps" ? uPlot.paths.stepped({ align: 1 }) : undefined,
        points: { show: false },
      };
    }

    // From 0, or from near the least, to the greatest of what is shown, with the ends of the intervals.
    height(plot, low, high) {
      const { y, series, levels } = this.figure;
      const shown = series.filter((_, index) => plot.series[index + 1].show);
      const ends = shown.flatMap((each) => [...(each.low ?? []), ...(each.high ?? [])]);
      const more = [...ends, ...levels.map((level) => level.y)].filter((end) => end !== null);
      const [least, greatest] = [Math.min(low ?? Infinity, ...more), Math.max(high ?? -Infinity, ...more)];
      if (!Number.isFinite(least)) return [0, 1];
      const room = 0.06 * (greatest - (y.from_zero ? Math.min(0, least) : least)) || Math.abs(greatest) * 0.1 || 1;
      const bottom = y.from_zero ? Math.min(0, least) : least - room;
      return [bottom, y.most === undefined ? greatest + room : Math.min(Math.max(y.most, greatest), greatest + room)];
    }

    names(plot, ticks) {
      plot.ctx.font = this.font();
      const room = (plot.bbox.width / ticks.length) * 0.92;
      return ticks.map((tick) => fitting(plot.ctx, this.figure.x.labels[tick] ?? "", room));
    }

    // The ticks of a logarithmic axis that have room beside one another.
    sparse(plot, ticks) {
      let last = -Infinity;
      return ticks.map((tick) => {
        const at = plot.valToPos(tick, "x");
        if (at < 0 || at > plot.bbox.width / devicePixelRatio || at - last < 46) return "";
        last = at;
        return number(tick);
      });
    }

    font() {
      return `${11.5 * devicePixelRatio}px ${FONTS}`;
    }

    // A background for every other phase, and the names above, in lanes so that none covers another.
    bands(plot) {
      const { ctx, bbox: { left, top, width, height } } = plot;
      const free = Array(this.lanes).fill(left);
      ctx.save();
      ctx.font = this.font();
      ctx.textAlign = "left";
      ctx.textBaseline = "alphabetic";
      this.figure.bands.forEach((band, index) => {
        const ends = [band.from, band.to].map((at) => plot.valToPos(at, "x", true));
        const [from, to] = ends.map((at) => Math.min(Math.max(at, left), left + width));
        if (ends[1] < left || ends[0] > left + width) return;
        ctx.fillStyle = colour(index % 2 ? "band-2" : "band-1");
        ctx.fillRect(from, top, Math.max(to - from, devicePixelRatio), height);
        const lane = free.findIndex((end) => end <= from);
        if (lane < 0) return;
        const text = fitting(ctx, band.name, Math.min(left + width - from, Math.max(to - from, 0.4 * width)));
        ctx.fillStyle = colour("soft");
        ctx.fillText(text, from, top - (5 + lane * LANE_PX) * devicePixelRatio);
        free[lane] = from + ctx.measureText(text).width + 8 * devicePixelRatio;
      });
      ctx.restore();
    }

    levels(plot) {
      const { ctx } = plot;
      ctx.save();
      ctx.lineWidth = 1.6 * devicePixelRatio;
      ctx.setLineDash([2, 4].map((length) => length * devicePixelRatio));
      for (const level of this.figure.levels) {
        const y = plot.valToPos(level.y, "y", true);
        ctx.strokeStyle = colour(level.color);
        ctx.beginPath();
        ctx.moveTo(plot.valToPos(level.from, "x", true), y);
        ctx.lineTo(plot.valToPos(level.to, "x", true), y);
        ctx.stroke();
      }
      ctx.restore();
    }

    // Points and intervals; a point that stands alone between gaps has one in any case.
    marks(plot) {
      const { ctx, bbox: { left, top, width, height } } = plot;
      const size = devicePixelRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(left - 6 * size, top - 6 * size, width + 12 * size, height + 12 * size);
      ctx.clip();
      this.figure.series.forEach((each, index) => {
        if (!plot.series[index + 1].show || !each.points) return;
        const radius = (this.figure.over_time ? 2.2 : 4) * size;
        ctx.strokeStyle = ctx.fillStyle = colour(each.color);
        ctx.lineWidth = 1.6 * size;
        each.y.forEach((value, place) => {
          if (value === null) return;
          const at = [plot.valToPos(this.figure.x.values[place], "x", true), plot.valToPos(value, "y", true)];
          const ends = [each.low?.[place], each.high?.[place]];
          if (ends.every((end) => end !== null && end !== undefined)) this.interval(plot, at[0], ends);
          ctx.beginPath();
          ctx.arc(...at, radius, 0, 2 * Math.PI);
          if (each.open?.includes(place)) {
            ctx.save();
            ctx.fillStyle = colour("card");
            ctx.fill();
            ctx.restore();
            ctx.stroke();
          } else ctx.fill();
        });
      });
      ctx.restore();
    }

    interval(plot, x, ends) {
      const { ctx } = plot;
      const [low, high] = ends.map((end) => plot.valToPos(end, "y", true));
      const arm = 5 * devicePixelRatio;
      ctx.beginPath();
      for (const y of [low, high]) {
        ctx.moveTo(x - arm, y);
        ctx.lineTo(x + arm, y);
      }
      ctx.moveTo(x, low);
      ctx.lineTo(x, high);
      ctx.stroke();
    }

    // A name in the legend, with the value at the cursor; a click shows or hides its series.
    entry(series, index) {
      const button = document.createElement("button");
      button.type = "button";
      const swatch = document.createElement("i");
      swatch.className = `${series.color} ${series.line ?? "solid"}`;
      const value = document.createElement("span");
      value.className = "value";
      button.append(swatch, series.name, value);
      const show = () => { button.ariaPressed = String(this.plot.series[index].show); };
      button.addEventListener("click", () => {
        this.plot.setSeries(index, { show: !this.plot.series[index].show });
        show();
      });
      show();
      this.legend.append(button);
      return value;
    }

    tell() {
      if (!this.where) return;
      const { x, series, bands, unit } = this.figure;
      const place = this.plot.cursor.left >= 0 ? this.plot.cursor.idx : null;
      const there = place !== null && place !== undefined;
      series.forEach((each, index) => {
        const value = there ? each.y[place] : undefined;
        const text = each.texts?.[place] ? ` (${each.texts[place]})` : "";
        this.entries[index].textContent = value === undefined || value === null ? "" : `${number(value)} ${unit}${text}`;
      });
      this.where.textContent = "";
      if (there && x.labels) {
        this.where.textContent = x.labels[Math.round(x.values[place])] ?? "";
      } else if (there && bands.length) {
        const at = x.values[place];
        const phase = bands.filter((band) => band.from <= at && at <= band.to).map((band) => band.name);
        this.where.textContent = `at ${number(at)} ${x.title.split(" ")[0]}${phase.length ? `, ${phase.join(", ")}` : ""}`;
      }
    }
  }

  const plots = [...document.querySelectorAll("[data-figure]")].map(
    (place) => new Plot(place, figures[place.dataset.figure]),
  );
  // A double click in one plot over time shows all of it in each.
  for (const plot of plots) {
    plot.plot.over.addEventListener("dblclick", () => {
      const same = plot.figure.over_time ? plots.filter((other) => other.figure.over_time) : [plot];
      for (const each of same) {
        const [min, max] = each.figure.x.range;
        each.zoomed = false;
        each.plot.setData(each.plot.data, false);
        each.plot.setScale("x", { min, max });
      }
    });
  }

  const repaint = () => plots.forEach((each) => each.plot.redraw(false, true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  // Paper is white, has another width than the screen, and is laid out only after this.
  const PAPER_PX = 640;
  addEventListener("beforeprint", () => {
    root.dataset.paper = "";
    plots.forEach((each) => each.fit(PAPER_PX));
    repaint();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    plots.forEach((each) => each.fit());
    repaint();
  });
})();
