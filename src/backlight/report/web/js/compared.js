// Charts of models compared: a panel a number, and not a panel a model.

const firstRows = (rows, column) => [...new Map(rows.map((row) => [row[column], row])).values()];

/** Panels with names of their own, each with its own vertical axis. */
function panelsOf(names, subtitles, colours, width, least, across) {
  const layout = panels(colours, names.map((name, index) => ({ name, index })), { subtitles }, width, least, { x: { zeroline: false, title: heading(across) }, y: { zeroline: true } });
  names.forEach((_, i) => {
    const tag = i ? i + 1 : "";
    delete layout[`yaxis${tag}`].matches;
    layout[`yaxis${tag}`].showticklabels = true;
  });
  return layout;
}

Object.assign(CHARTS, {
  /** The difference of each unit from that of another model, a panel a number and a pair. */
  differences(chart, shown, colours, width) {
    const each = shown.flatMap((model) => {
      const rows = rowsOf(chart.table, model).filter((row) => models.find((other) => other.name === row.less)?.shown);
      return firstRows(rows, "quantity").map(({ quantity, title, less }) => ({ model, title, less, rows: rows.filter((row) => row.quantity === quantity) }));
    });
    const data = each.flatMap(({ model, rows }, i) => {
      const on = { xaxis: `x${i + 1}`, yaxis: `y${i + 1}` }, colour = rows.map((row) => colours.kind(row.kind));
      return [{
        ...INFO, ...on, x: rows.map((row, k) => (row.unit >= 0 ? row.unit : k)), y: pick(rows, chart.y, chart.scale), mode: "markers",
        marker: { size: 8, color: colour, symbol: rows.map((row) => symbolOf(row.kind)) }, error_y: errors(rows, chart, { color: colours.of("soft"), thickness: 1.2, width: 0 }),
        text: rows.map((row) => named(model, row, chart)),
      }];
    });
    const pairs = each.map(({ model, less }) => `${model.name} less ${less}`);
    return { data, layout: panelsOf(each.map(({ title }) => title), pairs, colours, width, 330, "Unit, or part of the depth") };
  },

  /** A number of snapshots over the steps of training, a panel a number. */
  trend(chart, shown, colours, width) {
    const rows = shown.flatMap((model) => rowsOf(chart.table, model).map((row) => ({ ...row, model })));
    const each = firstRows(rows, "quantity");
    const data = each.flatMap(({ quantity }, i) => {
      const line = rows.filter((row) => row.quantity === quantity).sort((a, b) => a.at - b.at);
      return [{
        ...INFO, xaxis: `x${i + 1}`, yaxis: `y${i + 1}`, x: line.map((row) => row.at), y: pick(line, chart.y, 1), mode: "lines+markers",
        line: { color: colours.of("ink"), width: 2 }, error_y: errors(line, chart, { color: colours.of("soft"), thickness: 1.2, width: 0 }),
        text: line.map((row) => `<b>${plain(row.model.name)}</b><br>${figure(row.value)} [${figure(row.value_low)}, ${figure(row.value_high)}]`),
      }];
    });
    return { data, layout: panelsOf(each.map(({ title }) => title), each.map(({ over }) => over), colours, width, 330, "Step in the name of the snapshot") };
  },
});
