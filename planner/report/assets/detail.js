/* Everything about one tensor, in a panel at the side. */
let logarithmicCounts = false;
let expertSeries = "";
let opener = null;

function openTensor(tensor) {
  opener = document.activeElement;
  state.tensor = DATA.names[tensor];
  keep(true);
  drawDetail();
  byId("detail-title")?.focus({ preventScroll: true });
}

function closeDetail() {
  state.tensor = null;
  keep(true);
  drawDetail();
  if (opener?.isConnected) opener.focus({ preventScroll: true });
}

function drawDetail(keepScroll = false) {
  const panel = byId("detail");
  const tensor = placeOf.get(state.tensor);
  panel.hidden = tensor === undefined;
  document.body.classList.toggle("open", tensor !== undefined);
  markCurrent();
  if (tensor === undefined) return panel.replaceChildren();
  const top = keepScroll ? panel.scrollTop : 0;
  const width = Math.max(240, panel.clientWidth - (innerWidth <= 600 ? 26 : 38));
  panel.replaceChildren(
    heading(tensor), ...identity(tensor), ...distribution(tensor, width), ...acrossLayers(tensor, width), ...siblings(tensor, width),
    ...fusedExperts(tensor, width), ...norms(tensor), ...heads(tensor, width), ...spectral(tensor, width),
    ...largest(tensor), ...everything(tensor),
  );
  panel.scrollTop = top;
}

function heading(tensor) {
  const neighbours = sameRole(tensor);
  const at = neighbours.indexOf(tensor);
  const go = (place, text) => made("button", {
    type: "button", disabled: !(place in neighbours), onclick: () => openTensor(neighbours[place]),
  }, text);
  return made("div", { class: "head" },
    made("h2", { id: "detail-title", tabindex: "-1", class: "mono" }, breakable(shownName(tensor))),
    made("div", { class: "buttons" }, made("button", { type: "button", onclick: closeDetail }, "Close"),
      go(at - 1, "\u2190 same role before"), go(at + 1, "after \u2192")));
}

/* The tensors of the same role and expert, in the order of the layers. */
function sameRole(tensor) {
  const found = [];
  for (let other = 0; other < COUNT; other++) {
    if (DATA.role[other] === DATA.role[tensor] && (!DATA.expert || DATA.expert[other] === DATA.expert[tensor])) found.push(other);
  }
  return found.sort((a, b) => (DATA.layer[a] ?? -1) - (DATA.layer[b] ?? -1) || a - b);
}

function identity(tensor) {
  const layer = DATA.layer[tensor];
  const expert = DATA.expert?.[tensor];
  const where = layer === null ? "outside the layers" : `layer ${layer}`;
  const parts = [DATA.roles[DATA.role[tensor]], where, expert === null || expert === undefined ? "" : `expert ${expert}`,
    DATA.dtypes[DATA.dtype[tensor]], shapeText(DATA.shapes[DATA.shape[tensor]]), `${whole(DATA.elements[tensor])} elements`];
  const found = [
    made("p", {}, parts.filter(Boolean).join(" \u00b7 ")),
    made("p", { class: "muted" }, made("code", {}, `${DATA.digest[tensor]}\u2026`)),
  ];
  for (const sentence of DATA.findings[tensor] ?? []) found.push(made("p", { class: "warning" }, sentence));
  const same = DATA.same[tensor];
  if (same !== undefined) {
    const link = made("button", { type: "button", class: "chip", onclick: () => openTensor(same) }, shownName(same));
    found.push(made("p", {}, "Same bytes as ", link));
  }
  return found;
}

function distribution(tensor, width) {
  const quantiles = DATA.quantiles[tensor];
  const [low, high] = [columnOf("min")[tensor] ?? null, columnOf("max")[tensor] ?? null];
  if (low === null || high === null) {
    const why = "No statistics: it has no finite elements, or values of its dtype are not read.";
    return [made("p", { class: "muted" }, why)];
  }
  const bins = DATA.histograms[tensor];
  const found = [];
  if (bins) found.push(made("h3", {}, "Histogram", countsToggle()), ...histogram(bins, width, logarithmicCounts));
  found.push(made("h3", {}, "Quantiles"));
  if (!quantiles) return found;
  const largest = DATA.largest[tensor] ?? [];
  found.push(strip(quantiles, low, high, largest, width));
  const [from, to] = [quantiles[0], quantiles[8]];
  if (from !== null && to > from && high - low > 4 * (to - from)) {
    const note = made("small", {}, "above: all elements; below: the central 99.8 %");
    found.push(strip(quantiles, from, to, [], width), note);
  }
  const rings = largest.length ? ", rings: the largest elements" : "";
  found.push(made("small", {}, `box: 25 % to 75 %, gap: median, thick: 5 % to 95 %, thin: 0.1 % to 99.9 %${rings}`));
  return found;
}

function countsToggle() {
  const turn = () => {
    logarithmicCounts = !logarithmicCounts;
    drawDetail(true);
    byId("counts").focus();
  };
  return made("button", { type: "button", id: "counts", onclick: turn }, `counts: ${logarithmicCounts ? "logarithmic" : "linear"}`);
}

function acrossLayers(tensor, width) {
  const measure = measureOf(state.stat);
  const peers = sameRole(tensor).filter((other) => DATA.layer[other] !== null);
  if (!measure || DATA.layer[tensor] === null || peers.length < 2) return [];
  const column = DATA.columns[measure.place];
  const z = standingsOf(measure).get(tensor);
  const standing = z === null || z === undefined ? "" : `, z ${signed(z)}`;
  const drawing = bars(peers.map((other) => column[other]), width, {
    text: (place) => `layer ${DATA.layer[peers[place]]}`,
    current: peers.indexOf(tensor),
    pick: (place) => openTensor(peers[place]),
  });
  return [made("h3", {}, `${measure.label} in every layer`), drawing, made("small", {}, `here ${figure(column[tensor])}${standing}`)];
}

/* The other tensors of the same cell: numbered experts, or towers that share names. */
function siblings(tensor, width) {
  const measure = measureOf(state.stat);
  const cell = CELLS.get(DATA.role[tensor])?.get(DATA.layer[tensor]) ?? [];
  if (!measure || cell.length < 2) return [];
  const column = DATA.columns[measure.place];
  const ordered = DATA.expert ? [...cell].sort((a, b) => (DATA.expert[a] ?? -1) - (DATA.expert[b] ?? -1)) : cell;
  const numbered = DATA.expert && DATA.expert[tensor] !== null;
  const what = `${whole(cell.length)} ${numbered ? "experts" : "tensors"} of this role in this layer`;
  return [made("h3", {}, `${measure.label} of the ${what}`), bars(ordered.map((other) => column[other]), width, {
    text: (place) => (numbered ? `expert ${DATA.expert[ordered[place]]}` : shownName(ordered[place])),
    current: ordered.indexOf(tensor),
    pick: (place) => openTensor(ordered[place]),
  })];
}

function fusedExperts(tensor, width) {
  const series = DATA.experts[tensor];
  if (!series || !Object.keys(series).length) return [];
  const chosen = expertSeries in series ? expertSeries : Object.keys(series)[0];
  const choice = made("select", { "aria-label": "statistic of the experts", onchange: (event) => {
    expertSeries = event.target.value;
    drawDetail(true);
  } }, Object.keys(series).map((label) => made("option", { value: label, selected: label === chosen }, label)));
  return [made("h3", {}, `${whole(series[chosen].length)} experts in this tensor`, choice),
    bars(series[chosen], width, { text: (place) => `expert ${place}` })];
}

function norms(tensor) {
  const lines = [["rows", DATA.rows[tensor]], ["columns", DATA.cols[tensor]]].filter(([, norm]) => norm);
  if (!lines.length) return [];
  const rows = lines.map(([kind, norm]) => [kind, ...norm.slice(0, 5).map((number) => figure(number))]);
  const places = lines.map(([kind, norm]) => made("small", {},
    `${kind} of largest norm: ${norm[6].join(", ")}; of smallest: ${norm[5].join(", ")}`));
  const table = plainTable(["", "count", "min", "median", "max", "CV"], rows);
  return [made("h3", {}, "Norms of rows and columns"), made("div", { class: "scroll" }, table), ...places];
}

/* A table whose first column is text and whose others are numbers. */
function plainTable(titles, rows) {
  const head = titles.map((title, place) => made("th", { scope: "col", class: place ? "n" : null }, title));
  const body = rows.map(([first, ...others]) => made("tr", {},
    made("th", { scope: "row" }, first), others.map((text) => made("td", { class: "n" }, text))));
  return made("table", { class: "plain" }, made("thead", {}, made("tr", {}, head)), made("tbody", {}, body));
}

function heads(tensor, width) {
  return (DATA.heads[tensor] ?? []).flatMap(([part, axis, size, values]) => [
    made("h3", {}, `Norms of the ${values.length} ${part} heads`),
    bars(values, width, { text: (place) => `head ${place}`, height: 60 }),
    made("small", {}, `each ${size} ${axis}`),
  ]);
}

function spectral(tensor, width) {
  const values = DATA.spectra[tensor];
  if (!values?.length) return [];
  const title = made("h3", {}, `Largest ${values.length} singular values`);
  return [title, spectrum(values, width), made("small", {}, `method: ${DATA.methods[tensor]}`)];
}

function largest(tensor) {
  const elements = DATA.largest[tensor];
  if (!elements) return [];
  const [mean, std] = [columnOf("mean")[tensor], columnOf("std")[tensor]];
  const rows = elements.map(([index, value]) =>
    [`[${index.join(", ")}]`, figure(value, 6), std ? signed((value - mean) / std) : "\u2013"]);
  return [made("h3", {}, "Largest elements"), plainTable(["element", "value", "std from the mean"], rows)];
}

function everything(tensor) {
  const line = (name, value, about) => made("div", { title: about }, made("dt", {}, name), made("dd", {}, figure(value, 6)));
  const listed = DATA.measures.map((measure, place) => {
    const value = DATA.columns[place][tensor];
    return value === null ? null : line(measure.label, value, measure.about);
  });
  const quantiles = (DATA.quantiles[tensor] ?? []).map((value, place) =>
    line(`${+(100 * DATA.orders[place]).toFixed(1)} %`, value, "quantile: the lower order statistic"));
  return [made("h3", {}, "All statistics"), made("dl", { class: "numbers" }, listed, quantiles)];
}
