"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    // A touch screen would show it all the time, over the legend.
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const places = [...document.querySelectorAll("[data-figure]")];
  const overTime = places.filter((place) => figures[place.dataset.figure].over_time);

  for (const place of places) {
    const { data, layout } = figures[place.dataset.figure];
    Plotly.newPlot(place, data, layout, config);
  }

  // A look at one stretch of time is a look at it in every plot over time.
  let following = false;
  const follow = async (place, change) => {
    const from = change["xaxis.range[0]"];
    const whole = change["xaxis.autorange"];
    if (following || (from === undefined && !whole)) return;
    following = true;
    const update = whole
      ? { "xaxis.autorange": true }
      : { "xaxis.range": [from, change["xaxis.range[1]"]] };
    const others = overTime.filter((other) => other !== place);
    await Promise.all(others.map((other) => Plotly.relayout(other, update)));
    following = false;
  };
  for (const place of overTime) {
    place.on("plotly_relayout", (change) => follow(place, change));
  }

  // Paper has another width than the screen, and is laid out only after this.
  const PAPER_PX = 640;
  window.addEventListener("beforeprint", () => {
    for (const place of places) Plotly.relayout(place, { width: PAPER_PX });
  });
  window.addEventListener("afterprint", () => {
    for (const place of places) Plotly.relayout(place, { width: null, autosize: true });
  });
})();
