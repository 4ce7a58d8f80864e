// Many models in one chart: a panel a family, a thin line a model, a thick line the median of the family.

const PANELS = 12; // of charts with a panel a model
const STEPS = 24; // points of a median

/** Kinds of charts with one line a model: how it is read from rows. */
const LINES = {
  depth: (chart, model) => {
    const rows = grouped(rowsOf(chart.table, model), "unit").map((unit) => unit.at(-1));
    return { x: depthsOf(model, rows), y: pick(rows, chart.y, chart.scale), across: "Normalised depth" };
  },
  reliability: (chart, model) => {
    const rows = rowsOf(chart.table, model);
    return { x: pick(rows, "confidence", 1), y: pick(rows, "accuracy", 1), across: "Confidence" };
  },
};
for (const [kind, across] of Object.entries({
  sections: "Coordinate along a direction", densities: "Eigenvalue", frequencies: "Frequency of the noise (units of π)",
  severities: "Severity", epsilons: "Epsilon (1/255)", steps: "Snapshot",
})) {
  LINES[kind] = (chart, model) => {
    const every = rowsOf(chart.table, model), solid = every.filter((row) => row.middle === 1 || row.direction === 1);
    const rows = solid.length ? solid : every;
    return { x: pick(rows, "at", 1), y: pick(rows, chart.y, chart.scale), across };
  };
}

/** The value of a line at x, between its points; null outside. */
function at(line, x) {
  const i = line.x.findIndex((value) => value >= x);
  if (i < 0) return null;
  if (line.x[i] === x || i === 0) return line.x[i] === x ? line.y[i] : null;
  const [from, to] = [line.y[i - 1], line.y[i]];
  return from === null || to === null ? null : from + ((to - from) * (x - line.x[i - 1])) / (line.x[i] - line.x[i - 1]);
}

function median(values) {
  const known = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  if (!known.length) return null;
  const half = known.length >> 1;
  return known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
}

/** Small charts of families, on common axes. */
function familyChart(chart, shown, colours, width) {
  const names = [...new Set(shown.map((model) => model.family))].sort();
  const members = names.map((name) => shown.filter((model) => model.family === name));
  const panelsOf = names.map((name, i) => ({ name: `${name} (${members[i].length})`, index: i }));
  const data = [];
  let across = "";
  members.forEach((family, i) => {
    const on = { xaxis: `x${i + 1}`, yaxis: `y${i + 1}` };
    const lines = family.map((model) => LINES[chart.kind](chart, model));
    family.forEach((model, k) => data.push({
      ...INFO, ...on, x: lines[k].x, y: lines[k].y, mode: "lines", opacity: family.length > 8 ? 0.4 : 0.6, line: { color: colours.model(model), width: 1 },
      text: lines[k].y.map((value) => `<b>${plain(model.name)}</b><br>${figure(value)}`),
    }));
    across = lines[0]?.across ?? across;
    if (chart.kind === "reliability") data.push({ ...QUIET, ...on, x: [0, 1], y: [0, 1], mode: "lines", line: { color: colours.of("soft"), width: 1, dash: "dot" } });
    const points = lines.flatMap((line) => line.x);
    const from = Math.min(...points), to = Math.max(...points);
    const x = Array.from({ length: STEPS + 1 }, (_, k) => from + ((to - from) * k) / STEPS);
    if (lines.length > 1) {
      const y = x.map((place) => median(lines.map((line) => at(line, place))));
      data.push({ ...INFO, ...on, x, y, mode: "lines", line: { color: colours.of("ink"), width: 3 }, text: y.map((value) => `<b>median of ${plain(names[i])}</b><br>${figure(value)}`) });
    }
  });
  const y = { zeroline: true, ...(chart.log ? { type: "log", ...decades(data.flatMap((trace) => trace.y)) } : {}) };
  return { data, layout: panels(colours, panelsOf, { ...chart, subtitles: [] }, width, 250, { x: { title: heading(across), zeroline: false }, y }) };
}
