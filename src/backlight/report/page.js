"use strict";
// Draws the charts of a Backlight page from its one JSON, and lets readers switch models on and off.  In this order:
// the numbers, colours and words; a function for each kind of chart; the controls.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const models = page.models.map((model, index) => ({ ...model, index, shown: true }));
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- numbers

  const unfolded = new Map();

  /** The rows of a table for one model, none where the analysis was not made. */
  function rowsOf(table, model) {
    const key = `${table} ${model.index}`;
    if (!unfolded.has(key)) {
      const columns = page.tables[table][model.index] ?? {};
      const names = Object.keys(columns);
      const count = names.length ? columns[names[0]].length : 0;
      const row = (i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]));
      unfolded.set(key, Array.from({ length: count }, (_, i) => row(i)));
    }
    return unfolded.get(key);
  }

  /** Rows that follow each other and agree in `column`, together. */
  function grouped(rows, column) {
    const groups = [];
    for (const row of rows) {
      if (groups.length && groups.at(-1)[0][column] === row[column]) groups.at(-1).push(row);
      else groups.push([row]);
    }
    return groups;
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

  // --- surfaces

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

  // --- a function a kind of chart: (chart, its models, colours, width, room) -> what Plotly draws

  const CHARTS = {
    /** A number after each unit over normalised depth, a line a model, a symbol a kind. */
    depth(chart, shown, colours, width, room) {
      const data = [], front = [];
      for (const model of shown) {
        const rows = grouped(rowsOf(chart.table, model), "unit").map((unit) => unit.at(-1));
        const depth = rows.map((_, i) => i / Math.max(1, rows.length - 1));
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

    /** Cuts through the trained weights with their intervals, both directions of a model in its colour. */
    sections(chart, shown, colours, width, room) {
      return bands(chart, shown, colours, width, room, "direction", "Coordinate along a direction");
    },

    /** The density of eigenvalues of one sign with its interval, a line a model. */
    densities(chart, shown, colours, width, room) {
      return bands(chart, shown, colours, width, room, null, "Eigenvalue");
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
  };

  // --- drawing

  const PAPER_WIDTH = 660; // pixels between the margins of A4 and of Letter
  const root = document.documentElement;
  const places = all("[data-chart]");
  const fine = matchMedia("(pointer: fine)").matches; // a finger scrolls the page and has no use for a bar over the chart
  const OPTIONS = { displaylogo: false, displayModeBar: fine ? "hover" : false, modeBarButtons: [["toImage", "resetScale2d"]] };

  /** The height that lets a figure end where the words beside it do; 0 where they are below it. */
  function roomOf(place) {
    const aside = place.closest(".beside")?.querySelector("aside"), whole = place.closest("[data-figure]");
    if (!aside || aside.offsetLeft <= whole.offsetLeft) return 0;
    return Math.min(560, Math.max(430, aside.clientHeight - whole.clientHeight + place.clientHeight - 16));
  }

  const drawn = new Map(); // the width that each was last drawn at

  function draw(place) {
    const width = root.classList.contains("printing") ? PAPER_WIDTH : place.clientWidth;
    if (!width) return; // behind a tab
    drawn.set(place, width);
    const name = place.dataset.chart, chart = page.charts[name];
    const shown = models.filter((model) => model.shown && page.tables[chart.table][model.index]);
    place.classList.toggle("empty", !shown.length);
    if (!shown.length) {
      Plotly.purge(place);
      place.textContent = "No model that was measured here is switched on.";
      return;
    }
    if (!place.querySelector(".plot-container")) place.textContent = "";
    const { data, layout } = CHARTS[chart.kind](chart, shown, palette(), width, roomOf(place));
    Plotly.react(place, data, layout, { ...OPTIONS, toImageButtonOptions: { format: "svg", filename: name } });
  }

  const drawAll = () => places.forEach(draw);

  function keepFitting() {
    const observer = new ResizeObserver((entries) => requestAnimationFrame(() => {
      for (const { target } of entries) {
        if (!root.classList.contains("printing") && drawn.get(target) !== target.clientWidth) draw(target);
      }
    }));
    places.forEach((place) => observer.observe(place));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }

  // --- controls

  function switchModels() {
    for (const box of all("[data-switch]")) {
      box.addEventListener("change", () => {
        const model = models[Number(box.dataset.switch)];
        model.shown = box.checked;
        all(`[data-model="${model.index}"]`).forEach((element) => { element.hidden = !model.shown; });
        all("[data-about]").forEach((element) => {
          element.hidden = element.dataset.about.split(" ").some((index) => !models[Number(index)].shown);
        });
        drawAll();
      });
    }
  }

  function switchTabs() {
    for (const list of all("[role=tablist]")) {
      const tabs = all("[role=tab]", list);
      const select = (chosen) => {
        for (const tab of tabs) {
          tab.setAttribute("aria-selected", String(tab === chosen));
          tab.tabIndex = tab === chosen ? 0 : -1;
          document.getElementById(tab.getAttribute("aria-controls")).classList.toggle("other-tab", tab !== chosen);
        }
        drawAll();
      };
      tabs.forEach((tab, i) => {
        tab.addEventListener("click", () => select(tab));
        tab.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (!step) return;
          const next = tabs[(i + step + tabs.length) % tabs.length];
          select(next);
          next.focus();
        });
      });
    }
  }

  function switchLogarithm() {
    for (const box of all("[data-log]")) {
      box.addEventListener("change", () => {
        page.charts[box.dataset.log].log = box.checked;
        all(`[data-chart="${box.dataset.log}"]`).forEach(draw);
      });
    }
  }

  /** A word is one stop of the tabulator; arrows walk through it. */
  function nameUnits() {
    for (const word of all(".word")) {
      const units = all(".unit", word), output = word.parentElement.querySelector(".unit-name");
      const name = (unit) => {
        units.forEach((other) => { other.classList.toggle("named", other === unit); other.tabIndex = other === unit ? 0 : -1; });
        output.textContent = unit.dataset.name;
      };
      units[0].tabIndex = 0;
      units.forEach((unit, i) => {
        for (const event of ["pointerenter", "focus", "click"]) unit.addEventListener(event, () => name(unit));
        unit.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (step && units[i + step]) units[i + step].focus();
        });
      });
    }
  }

  const cell = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));

  function csv(table) {
    const rows = models.flatMap((model) => rowsOf(table, model).map((row) => ({ model: model.name, ...row })));
    const columns = [...new Set(rows.flatMap(Object.keys))];
    return [columns, ...rows.map((row) => columns.map((column) => row[column]))].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function downloadRows() {
    for (const button of all("[data-csv]")) {
      button.addEventListener("click", () => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([csv(button.dataset.csv)], { type: "text/csv" }));
        link.download = `${button.dataset.csv}.csv`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      });
    }
  }

  /** On paper: light colours, charts of the paper's width, everything open; and back. */
  function print() {
    let opened = [];
    const prepare = (printing) => {
      if (printing === root.classList.contains("printing")) return;
      root.classList.toggle("printing", printing);
      if (printing) opened = all("details:not([open])");
      opened.forEach((details) => { details.open = printing; });
      drawAll();
    };
    matchMedia("print").addEventListener("change", (event) => prepare(event.matches));
    addEventListener("beforeprint", () => prepare(true));
    addEventListener("afterprint", () => prepare(false));
    if (matchMedia("print").matches) prepare(true);
  }

  keepFitting();
  switchModels();
  switchTabs();
  switchLogarithm();
  nameUnits();
  downloadRows();
  print();
})();
