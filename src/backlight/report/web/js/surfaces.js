// Charts of a plane or in space: surfaces, contours, matrices and paths.

const PLASMA = [[0, "#0d0887"], [0.25, "#7e03a8"], [0.5, "#cc4778"], [0.75, "#f89540"], [1, "#f0f921"]];

/** Rows of (x, y, column) as a picture: the column, and how far it lies above its lowest point. */
function relief(rows, column) {
  const axis = (name) => [...new Set(rows.map((row) => row[name]))].sort((a, b) => a - b);
  const x = axis("x"), y = axis("y");
  const z = y.map(() => x.map(() => null));
  for (const row of rows) z[y.indexOf(row.y)][x.indexOf(row.x)] = row[column];
  const least = Math.min(...z.flat().filter((value) => value !== null));
  return { x, y, z, risen: z.map((row) => row.map((value) => (value === null ? null : value - least))) };
}

const highest = (lands) => Math.max(1e-12, ...lands.flatMap(({ risen }) => risen.flat()).filter((value) => value !== null));
const landed = (model, x, y, value) => `<b>${plain(model.name)}</b><br>at ${figure(x)}, ${figure(y)}<br>${figure(value)}`;

Object.assign(CHARTS, {
  /** A surface over a plane, a scene a model that turns with the pointer, on one scale. */
  surface(chart, shown, colours, width) {
    const lands = shown.map((model) => relief(rowsOf(chart.table, model), chart.y)), most = highest(lands);
    const across = Math.max(1, Math.min(shown.length, Math.floor(width / 300))), lines = Math.ceil(shown.length / across);
    const tall = 350, height = lines * tall;
    const layout = { ...sheet(colours, width, height), margin: { l: 0, r: 0, t: 0, b: 0 } };
    const data = lands.map(({ x, y, z, risen }, i) => {
      const column = i % across, line = Math.floor(i / across);
      const side = { gridcolor: colours.of("grid"), zerolinecolor: colours.of("grid"), color: colours.of("soft"), showspikes: false };
      layout[`scene${i ? i + 1 : ""}`] = {
        domain: { x: [column / across, (column + 1) / across], y: [1 - ((line + 1) * tall - 8) / height, 1 - (line * tall + 26) / height] },
        dragmode: "turntable", aspectmode: "manual", aspectratio: { x: 1, y: 1, z: 0.7 }, camera: { eye: { x: 1.35, y: -1.6, z: 0.95 }, center: { x: 0, y: 0, z: -0.16 } },
        xaxis: { ...side, title: { text: "1" } }, yaxis: { ...side, title: { text: "2" } }, zaxis: { ...side, title: { text: "" }, range: [0, most] },
      };
      layout.annotations.push({
        text: `<b>${plain(shorter(shown[i].name, Math.floor(width / across / 8)))}</b>`, xref: "paper", yref: "paper", xanchor: "left", yanchor: "top",
        x: column / across, y: 1 - (line * tall) / height, showarrow: false, font: { color: colours.of("ink") },
      });
      return {
        ...INFO, type: "surface", x, y, z: risen, scene: `scene${i ? i + 1 : ""}`, cmin: 0, cmax: Math.sqrt(most), colorscale: PLASMA, lighting: { ambient: 0.85, diffuse: 0.4, specular: 0 },
        surfacecolor: risen.map((row) => row.map((value) => (value === null ? null : Math.sqrt(value)))), showscale: false,
        text: z.map((row, k) => row.map((value, n) => landed(shown[i], x[n], y[k], value))),
      };
    });
    return { data, layout };
  },

  /** The same from above: lines of equal height, a panel a model; the trained weights are a cross. */
  contour(chart, shown, colours, width) {
    const lands = shown.map((model) => relief(rowsOf(chart.table, model), chart.y)), most = highest(lands);
    const layout = panels(colours, shown, chart, width, 250, { x: { zeroline: false, title: heading("Coordinate 1") }, y: { zeroline: false } });
    const data = lands.flatMap(({ x, y, z, risen }, i) => {
      const on = { xaxis: `x${i + 1}`, yaxis: `y${i + 1}` };
      return [{
        ...INFO, ...on, type: "contour", x, y, z: risen.map((row) => row.map((value) => (value === null ? null : Math.sqrt(value)))),
        contours: { start: 0, end: Math.sqrt(most), size: Math.sqrt(most) / 12 }, zmin: 0, zmax: Math.sqrt(most), zauto: false,
        colorscale: PLASMA, showscale: false, line: { width: 0.5, color: "rgba(255,255,255,0.5)" },
        text: z.map((row, k) => row.map((value, n) => landed(shown[i], x[n], y[k], value))),
      }, { ...QUIET, ...on, x: [0], y: [0], mode: "markers", marker: { symbol: "cross-thin-open", size: 11, color: "#fff", line: { width: 1.6 } } }];
    });
    return { data, layout };
  },

  /** How alike units are, a square a pair, a panel a model; dotted lines where a stage ends. */
  matrix(chart, shown, colours, width) {
    const layout = panels(colours, shown, chart, width, 260, { x: { zeroline: false, showgrid: false, title: heading("Unit") }, y: { zeroline: false, showgrid: false } });
    const data = shown.map((model, i) => {
      const lines = grouped(rowsOf(chart.table, model), "unit"), across = lines[0], tag = i ? i + 1 : "";
      const ends = (rows, stage) => rows.slice(1).flatMap((row, k) => (row[stage] === rows[k][stage] ? [] : [row[stage.replace("stage", "unit")] - 0.5]));
      const line = { color: colours.kind("other"), width: 1, dash: "dot" };
      const from = across[0].other_unit - 0.5, to = across.at(-1).other_unit + 0.5, low = lines[0][0].unit - 0.5, high = lines.at(-1)[0].unit + 0.5;
      for (const x of ends(across, "other_stage")) layout.shapes.push({ type: "line", xref: `x${tag}`, yref: `y${tag}`, x0: x, x1: x, y0: low, y1: high, line });
      for (const y of ends(lines.map((rows) => rows[0]), "stage")) layout.shapes.push({ type: "line", xref: `x${tag}`, yref: `y${tag}`, x0: from, x1: to, y0: y, y1: y, line });
      delete layout[`yaxis${tag}`].matches;
      Object.assign(layout[`yaxis${tag}`], { showticklabels: true, range: [low, high] });
      Object.assign(layout[`xaxis${tag}`], { range: [from, to] });
      return {
        ...INFO, type: "heatmap", xaxis: `x${i + 1}`, yaxis: `y${i + 1}`, x: pick(across, "other_unit", 1), y: lines.map((rows) => rows[0].unit),
        z: lines.map((rows) => pick(rows, chart.y, chart.scale)), zmin: 0, zmax: 1, colorscale: PLASMA, showscale: false,
        text: lines.map((rows) => rows.map((row) => `${named(model, row, chart)}<br>with unit ${row.other_unit} · ${row.other_kind}`)),
      };
    });
    return { data, layout };
  },

  /** A way in a plane, a panel a model, from dark to bright; its end is a cross. */
  path(chart, shown, colours, width) {
    const data = [];
    shown.forEach((model, i) => {
      const rows = rowsOf(chart.table, model), last = rows.length - 1, on = { xaxis: `x${i + 1}`, yaxis: `y${i + 1}` };
      data.push({
        ...INFO, ...on, x: pick(rows, "x", 1), y: pick(rows, "y", 1), mode: "lines+markers", line: { color: colours.of("soft"), width: 1 },
        marker: {
          size: rows.map((_, k) => (k < last ? 8 : 12)), symbol: rows.map((_, k) => (k < last ? "circle" : "x-thin-open")),
          color: rows.map((_, k) => (k < last ? ramp(colours, last > 1 ? k / (last - 1) : 1) : colours.of("ink"))),
        },
        text: rows.map((row) => `<b>${plain(model.name)}</b><br>${row.snapshot === last ? "the model" : `snapshot ${row.snapshot}`}<br>NLL ${figure(row.nll)}`),
      });
    });
    const layout = panels(colours, shown, chart, width, 250, { x: { zeroline: false }, y: { zeroline: false } });
    shown.forEach((_, i) => {
      const tag = i ? i + 1 : "";
      delete layout[`yaxis${tag}`].matches;
      Object.assign(layout[`yaxis${tag}`], { scaleanchor: `x${tag}`, showticklabels: true });
    });
    return { data, layout };
  },
});
