// Charts of lines and bars: a function a kind, (chart, its models, colours, width, room) -> what Plotly draws.

/** Numbers against ``at`` with their intervals as bands, a line a model, or one a model and value of ``by``. */
function bands(chart, shown, colours, width, room, by, across, solid = (row) => row[by] === 1) {
  const data = [], front = [];
  for (const model of shown) {
    for (const rows of by ? grouped(rowsOf(chart.table, model), by) : [rowsOf(chart.table, model)]) {
      const at = pick(rows, "at", 1), value = pick(rows, chart.y, chart.scale), colour = colours.model(model);
      const [low, high] = ["_low", "_high"].map((end) => pick(rows, chart.y + end, chart.scale).map((x, i) => x ?? value[i]));
      const dash = by ? (solid(rows[0]) ? "solid" : "dash") : model.dash, name = by ? `${by} ${rows[0][by]}` : "";
      data.push({ ...QUIET, x: [...at, ...[...at].reverse()], y: [...high, ...low.reverse()], mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: faint(colour, 0.16) });
      front.push({
        ...INFO, x: at, y: value, mode: by || rows.length > 40 ? "lines" : "lines+markers", line: { color: colour, width: 2, dash }, marker: { color: colour, size: 7 },
        text: rows.map((row, i) => `<b>${plain(model.name)}</b><br>${name} at ${figure(row.at)}<br>${figure(value[i])} [${figure(low.at(-1 - i))}, ${figure(high[i])}]`),
      });
    }
  }
  const layout = sheet(colours, width, room || Math.round(Math.min(430, Math.max(300, width * 0.6))));
  layout.xaxis = axis(colours, { title: heading(across), zeroline: false });
  layout.yaxis = axis(colours, { rangemode: "tozero" });
  return { data: [...data, ...front], layout };
}

const CHARTS = {
  /** A number after each unit over normalised depth, a line a model, a symbol a kind. */
  depth(chart, shown, colours, width, room) {
    const data = [], front = [];
    for (const model of shown) {
      const rows = grouped(rowsOf(chart.table, model), "unit").map((unit) => unit.at(-1));
      const depth = depthsOf(model, rows);
      const value = pick(rows, chart.y, chart.scale);
      const [low, high] = ["_low", "_high"].map((end) => pick(rows, chart.y + end, chart.scale).map((x, i) => x ?? value[i]));
      const colour = colours.model(model);
      const line = { color: colour, width: 2, dash: model.dash };
      data.push({ ...QUIET, x: [...depth, ...[...depth].reverse()], y: [...high, ...low.reverse()], mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: faint(colour, 0.16) });
      data.push({ ...QUIET, x: depth, y: value, mode: "lines", opacity: 0.3, line: { ...line, width: 1.2 } });
      let i = 0;
      for (const stage of grouped(rows, "stage")) {
        data.push({ ...QUIET, x: depth.slice(i, i + stage.length), y: value.slice(i, i + stage.length), mode: "lines", line });
        i += stage.length;
      }
      const marker = {
        size: width < 500 || rows.length > 40 ? 7 : 9, symbol: rows.map((row) => symbolOf(row.kind)), color: rows.map((row) => colours.kind(row.kind)),
        line: { color: colours.of("paper"), width: 1 },
      };
      front.push({ ...INFO, x: depth, y: value, mode: "markers", marker, text: rows.map((row) => named(model, row, chart)) });
    }
    const layout = sheet(colours, width, room || Math.round(Math.min(430, Math.max(300, width * 0.6))));
    layout.xaxis = axis(colours, { title: heading("Normalised depth"), range: [-0.025, 1.025], zeroline: false });
    layout.yaxis = axis(colours, chart.log ? { type: "log", ...decades(data.flatMap((trace) => trace.y)) } : {});
    return { data: [...data, ...front], layout };
  },

  /** A number against frequency, a panel a model, a curve a unit. */
  curves(chart, shown, colours, width) {
    const data = [];
    let highest = 1;
    shown.forEach((model, i) => {
      const units = grouped(rowsOf(chart.table, model), "unit");
      const last = units.length - 1;
      units.forEach((rows, k) => {
        const known = rows.filter((row) => row[chart.y] !== null);
        if (!known.length) return;
        const stem = rows[0].kind === "stem";
        highest = Math.max(highest, ...known.map((row) => row.frequency));
        data.push({
          ...INFO, x: pick(known, "frequency", 1), y: pick(known, chart.y, chart.scale), xaxis: `x${i + 1}`, yaxis: `y${i + 1}`,
          mode: known.length > 1 ? "lines" : "markers", line: { color: stem ? colours.of("stem") : ramp(colours, last ? k / last : 1), width: 1.7, dash: stem ? "dash" : "solid" },
          text: known.map((row) => named(model, row, chart)),
        });
      });
    });
    const ticks = [0, 0.25, 0.5, 0.75, 1];
    const x = { range: [0, highest], tickvals: ticks, ticktext: ["0", "", "0.5π", "", "π"], title: heading("Frequency") };
    return { data, layout: panels(colours, shown, chart, width, 220, { x, y: { zeroline: true } }) };
  },

  /** A number a unit, a panel a model, under each bar the unit's letter. */
  bars(chart, shown, colours, width) {
    const units = shown.map((model) => rowsOf(chart.table, model).filter((row) => row.unit >= 0));
    const least = Math.min(width, Math.max(210, 11 * Math.max(1, ...units.map((rows) => rows.length))));
    const layout = panels(colours, shown, chart, width, least, { x: { showgrid: false, zeroline: false }, y: { zeroline: true, zerolinecolor: colours.of("soft") } });
    const data = [];
    units.forEach((rows, i) => {
      const places = rows.map((_, k) => k), colour = rows.map((row) => colours.kind(row.kind)), tag = i ? i + 1 : "";
      const on = { xaxis: `x${i + 1}`, yaxis: `y${i + 1}`, x: places, y: pick(rows, chart.y, chart.scale), text: rows.map((row) => named(shown[i], row, chart)) };
      data.push({ ...INFO, ...on, type: "bar", textposition: "none", marker: { color: colour, opacity: 0.45 }, width: 0.8 });
      const error_y = errors(rows, chart, { color: colours.of("soft"), thickness: 1.2, width: 0 });
      data.push({ ...INFO, ...on, mode: "markers", error_y, marker: { size: rows.length > 30 ? 5 : 7, color: colour, symbol: rows.map((row) => symbolOf(row.kind)) } });
      const x = layout[`xaxis${tag}`];
      const room = ((x.domain[1] - x.domain[0]) * width) / Math.max(1, rows.length);
      Object.assign(x, { range: [-0.7, rows.length - 0.3], title: heading("Units, first to last") });
      if (room >= 9) Object.assign(x, { tickvals: places, ticktext: rows.map((row) => letterOf(row.kind)), tickangle: 0, tickfont: { size: Math.min(12, room) } });
      rows.forEach((row, k) => {
        if (k && row.stage !== rows[k - 1].stage) {
          layout.shapes.push({ type: "line", xref: `x${tag}`, yref: `y${tag} domain`, x0: k - 0.5, x1: k - 0.5, y0: 0, y1: 1, line: { color: colours.of("soft"), width: 1, dash: "dot" } });
        }
      });
    });
    return { data, layout };
  },

  /** Accuracy against confidence, a line a model, larger marks where more images are. */
  reliability(chart, shown, colours, width, room) {
    const data = [{ ...QUIET, x: [0, 1], y: [0, 1], mode: "lines", line: { color: colours.of("soft"), width: 1, dash: "dot" } }];
    for (const model of shown) {
      const rows = rowsOf(chart.table, model), colour = colours.model(model);
      const text = rows.map((row) => `<b>${plain(model.name)}</b><br>confidence ${figure(row.from)} to ${figure(row.to)}, mean ${figure(row.confidence)}<br>` +
        `accuracy ${figure(row.accuracy)} [${figure(row.accuracy_low)}, ${figure(row.accuracy_high)}]<br>${figure(100 * row.share)}% of the images`);
      data.push({
        ...INFO, text, x: pick(rows, "confidence", 1), y: pick(rows, "accuracy", 1), mode: "lines+markers", line: { color: colour, width: 2, dash: model.dash },
        marker: { color: colour, opacity: 0.85, size: rows.map((row) => 5 + 17 * Math.sqrt(row.share)), line: { color: colours.of("paper"), width: 1 } },
        error_y: errors(rows, { y: "accuracy", scale: 1 }, { color: faint(colour, 0.5), thickness: 1.2, width: 0 }),
      });
    }
    const layout = sheet(colours, width, room || Math.min(width, 440));
    layout.xaxis = axis(colours, { title: heading("Confidence"), range: [-0.02, 1.02], zeroline: false });
    layout.yaxis = axis(colours, { range: [-0.03, 1.03], zeroline: false });
    return { data, layout };
  },

  /** Cuts through the trained weights with their intervals, both directions of a model in its colour. */
  sections(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, "direction", "Coordinate along a direction");
  },

  /** The density of eigenvalues of one sign with its interval, a line a model. */
  densities(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, null, "Eigenvalue");
  },

  /** A change against the frequency of noise, a line a model and severity; the middle severity is solid. */
  frequencies(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, "severity", "Frequency of the noise (units of π)", (row) => row.middle === 1);
  },

  /** A number at each severity of corruptions, a line a model. */
  severities(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, null, "Severity");
  },

  /** A number at each size of attack, a line a model. */
  epsilons(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, null, "Epsilon (1/255)");
  },

  /** A number at each snapshot of training with its interval, a line a model. */
  steps(chart, shown, colours, width, room) {
    return bands(chart, shown, colours, width, room, null, "Snapshot");
  },
};
