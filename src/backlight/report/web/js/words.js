// Numbers, words, colours and what charts share.

/** Rows that follow each other and agree in `column`, together. */
function grouped(rows, column) {
  const groups = [];
  for (const row of rows) {
    if (groups.length && groups.at(-1)[0][column] === row[column]) groups.at(-1).push(row);
    else groups.push([row]);
  }
  return groups;
}

/** The depth of each row's unit in its model: 0 for the stem, 1 for the last unit, whichever units the rows are about. */
function depthsOf(model, rows) {
  const units = model.stages.flat().length;
  return rows.map((row, i) => (units ? (row.unit + 1) / units : i / Math.max(1, rows.length - 1)));
}

const scaled = (value, scale) => (value === null || value === undefined ? null : value * scale);
const pick = (rows, column, scale) => rows.map((row) => scaled(row[column], scale));

/** The lengths of error bars for Plotly. */
function errors(rows, chart, style) {
  const value = pick(rows, chart.y, chart.scale);
  const high = pick(rows, `${chart.y}_high`, chart.scale).map((end, i) => Math.max(0, end - value[i]));
  const low = pick(rows, `${chart.y}_low`, chart.scale).map((end, i) => Math.max(0, value[i] - end));
  return { type: "data", symmetric: false, array: high, arrayminus: low, ...style };
}

// --- words and colours

/** Text for Plotly, which reads a little HTML. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  return text.replaceAll("-", "−");
}

const shorter = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);
const letterOf = (kind) => (page.signs[kind] ?? page.signs.other).letter;
const symbolOf = (kind) => (page.signs[kind] ?? page.signs.other).symbol;

/** What the mark under the pointer is: the model, the unit, its number with its interval. */
function named(model, row, chart) {
  const [value, low, high] = ["", "_low", "_high"].map((end) => scaled(row[chart.y + end], chart.scale));
  const unit = row.unit < 0 ? row.kind : `unit ${row.unit} · ${row.kind} · stage ${row.stage + 1}`;
  const at = row.frequency === undefined ? "" : ` at ${row.frequency === 1 ? "" : figure(row.frequency)}π`;
  const size = row.height ? ` · ${row.height} × ${row.width}` : "";
  return `<b>${plain(model.name)}</b><br>${plain(unit)}<br>${plain(row.module)}${size}<br>` +
    `${figure(value)} [${figure(low)}, ${figure(high)}]${at}`;
}

/** The colours of the page as it is shown now: light, dark or on paper. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const colour = (text) => (text.startsWith("var(--") ? of(text.slice(6, -1)) : text);
  return { of, kind: (kind) => of(page.signs[kind] ? kind : "other"), model: (model) => colour(model.colour) };
}

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const faint = (hex, share) => `rgba(${channels(hex).join(",")},${share})`;

/** A colour between the first unit's and the last's. */
function ramp(colours, share) {
  const stops = [0, 1, 2, 3, 4].map((i) => channels(colours.of(`ramp-${i}`)));
  const i = Math.min(3, Math.floor(share * 4));
  const mixed = stops[i].map((from, k) => Math.round(from + (stops[i + 1][k] - from) * (share * 4 - i)));
  return `rgb(${mixed.join(",")})`;
}

// --- what charts share

const INFO = { hoverinfo: "text", hovertemplate: "%{text}<extra></extra>", showlegend: false };
const QUIET = { hoverinfo: "skip", showlegend: false };

function sheet(colours, width, height) {
  return {
    width, height,
    margin: { l: 8, r: 10, t: 12, b: 8 },
    font: { family: colours.of("sans"), size: 12, color: colours.of("soft") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest", showlegend: false,
    dragmode: fine ? "zoom" : false,
    hoverlabel: { align: "left", bgcolor: colours.of("raised"), bordercolor: colours.of("line"), font: { family: colours.of("sans"), color: colours.of("ink"), size: 13 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.of("soft"), activecolor: colours.of("ink") },
    shapes: [], annotations: [],
  };
}

const axis = (colours, more) => ({
  gridcolor: colours.of("grid"), zerolinecolor: colours.of("line"), linecolor: colours.of("line"), automargin: true, ...more,
});

/** Ticks at 1, 2, 5 of each power of ten, or at the powers alone where they are many. */
function decades(values) {
  const known = values.filter((value) => value > 0);
  const from = Math.floor(Math.log10(Math.min(...known))), to = Math.ceil(Math.log10(Math.max(...known)));
  const step = Math.max(1, Math.ceil((to - from) / 7));
  const exponents = Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);
  const far = from < -3 || to > 5;
  const tickvals = exponents.flatMap((k) => (far || to - from > 3 ? [1] : [1, 2, 5]).map((digit) => digit * 10 ** k));
  return { tickvals, ticktext: far ? exponents.map((k) => `10<sup>${String(k).replace("-", "−")}</sup>`) : tickvals.map(figure) };
}

const heading = (text) => ({ text, standoff: 8, font: { size: 12 } });

/** Small charts, one a model, on one vertical axis.  `least`: pixels that one needs. */
function panels(colours, shown, chart, width, least, more) {
  const most = Math.max(1, Math.min(shown.length, Math.floor(width / least)));
  const lines = Math.ceil(shown.length / most);
  const across = Math.ceil(shown.length / lines);
  const top = chart.subtitles.length ? 46 : 28;
  const left = 46, tall = across > 1 ? 210 : 170, between = 28, below = 46;
  const height = lines * (top + tall + below);
  const layout = { ...sheet(colours, width, height), margin: { l: left, r: 8, t: 0, b: 0 } };
  const wide = (width - left - 8 - (across - 1) * between) / across;
  shown.forEach((model, i) => {
    const column = i % across, line = Math.floor(i / across), tag = i ? i + 1 : "";
    const from = (column * (wide + between)) / (width - left - 8);
    const up = 1 - (line * (top + tall + below) + top) / height;
    layout[`xaxis${tag}`] = axis(colours, { domain: [from, Math.min(1, from + wide / (width - left - 8))], anchor: `y${tag}`, automargin: false, ...more.x });
    layout[`yaxis${tag}`] = axis(colours, {
      domain: [Math.max(0, up - tall / height), up], anchor: `x${tag}`, automargin: false,
      showticklabels: column === 0, ...(i ? { matches: "y" } : {}), ...more.y,
    });
    const name = `<b>${plain(shorter(model.name, Math.floor(wide / 7.5)))}</b>`;
    const subtitle = chart.subtitles[model.index];
    layout.annotations.push({
      text: subtitle ? `${name}<br>${plain(shorter(subtitle, Math.floor(wide / 5.8)))}` : name,
      xref: "paper", yref: "paper", x: from, y: up, xanchor: "left", yanchor: "bottom", yshift: 4,
      showarrow: false, align: "left", font: { color: colours.of("ink") },
    });
  });
  return layout;
}
