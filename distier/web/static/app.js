// The two parts of the page that are drawn in the browser: the hit ratio, and the live moves. Texts are set as text, never as HTML.
"use strict";
(() => {
  const root = document.body.dataset.root || "";
  const MOVES_MAX = 30, SERIES_MS = 5000;

  // -- live moves
  const moves = document.getElementById("moves");
  if (moves) {
    const pause = document.getElementById("pause"), said = document.getElementById("stream");
    let paused = false, waiting = [];
    const cell = (content) => {
      const made = document.createElement("td");
      made.append(content);
      return made;
    };
    const add = (event) => {
      const row = document.createElement("tr");
      let what = "(the shard)";
      if (event.id) {
        what = document.createElement("a");
        what.className = "id";
        what.href = moves.dataset.module + "?id=" + encodeURIComponent(event.id);
        what.textContent = event.shown;
      }
      row.append(cell(new Date(event.at_ms).toISOString().slice(11, 19)), cell(event.from + " → " + event.to), cell(event.reason), cell(what));
      moves.prepend(row);
      while (moves.rows.length > MOVES_MAX) moves.lastElementChild.remove();
    };
    // A burst is drawn once a frame: a thousand rows a second would freeze the page.
    let due = false;
    const draw = () => {
      due = false;
      if (paused) return;
      waiting.slice(-MOVES_MAX).forEach(add);
      waiting = [];
    };
    const source = new EventSource(moves.dataset.events);
    source.onopen = () => { said.textContent = "Live."; };
    source.onerror = () => { said.textContent = "Not connected; trying again."; };
    source.onmessage = (message) => {
      waiting.push(JSON.parse(message.data));
      if (waiting.length > MOVES_MAX) waiting.shift();
      if (!due) { due = true; requestAnimationFrame(draw); }
    };
    // A browser shows an aborted stream as an error of the page.
    addEventListener("pagehide", () => source.close());
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Continue" : "Pause";
      said.textContent = paused ? "Paused." : "Live.";
      draw();
    });
  }

  // -- the hit ratio
  const chart = document.getElementById("chart");
  if (chart && window.uPlot) {
    const none = document.getElementById("no-reads");
    let plot = null, data = null;
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const clock = (s) => new Date(s * 1000).toISOString().slice(11, 19);
    const make = () => {
      if (plot) plot.destroy();
      const ink = colour("--pico-color"), grid = colour("--pico-muted-border-color");
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
      plot = new uPlot({
        width: chart.clientWidth, height: 180, cursor: { show: false }, legend: { show: false },
        scales: { y: { range: [0, 100] } },
        padding: [10, 14, 0, 4],
        axes: [{ ...axis, space: 90, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 62, values: (_, ticks) => ticks.map((n) => n + " %") }],
        series: [{}, { stroke: colour("--hot"), width: 2, spanGaps: true, points: { size: 5 } }],
      }, data, chart);
    };
    const load = async () => {
      try {
        const answer = await fetch(root + "/series.json");
        if (!answer.ok) return;
        const found = await answer.json();
        data = [found.times, found.hit_ratio];
        const some = found.hit_ratio.some((n) => n !== null);
        none.hidden = some;
        chart.hidden = !some;
        if (!some) return;
        if (plot) plot.setData(data); else make();
      } catch {
        // the server is away; the state above says so
      }
    };
    load();
    setInterval(load, SERIES_MS);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (plot) make(); });
    addEventListener("resize", () => { if (plot) plot.setSize({ width: chart.clientWidth, height: 180 }); });
  }
})();
