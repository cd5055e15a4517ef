/* Drawings of one tensor: histogram, quantiles, bars, spectrum. Drawn as wide as their place, so that text keeps its size. */
const PAD = { left: 46, right: 10 };

function canvas(width, height, label) {
  return drawn("svg", { class: "drawing", viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
}

function label(svg, x, y, text, anchor = "middle") {
  svg.append(drawn("text", { x, y, "text-anchor": anchor }, text));
}

function rule(svg, kind, x1, y1, x2, y2) {
  svg.append(drawn("line", { class: kind, x1, y1, x2, y2 }));
}

function titled(element, text) {
  element.append(drawn("title", {}, text));
  return element;
}

/* Round numbers inside a range. */
function niceTicks(low, high, most) {
  const span = high - low;
  if (!(span > 0) || !Number.isFinite(span)) return [low];
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) ticks.push(at * step);
  return ticks;
}

function axis(svg, low, high, left, right, y) {
  const across = (value) => left + share(value, low, high) * (right - left);
  rule(svg, "axis", left, y, right, y);
  for (const tick of niceTicks(low, high, Math.max(2, (right - left) / 80))) {
    rule(svg, "axis", across(tick), y, across(tick), y + 4);
    const text = Math.abs(tick) < (high - low) * 1e-9 ? "0" : figure(tick, 3);
    label(svg, across(tick), y + 15, text);
  }
}

/* [edges, counts, below, above]; two edges for many bins mean bins of one width. */
function histogram([edges, counts, below, above], width, logarithmic) {
  const height = 170;
  const [top, bottom] = [8, height - 22];
  const sides = [below ? 16 : 0, above ? 16 : 0];
  const [left, right] = [PAD.left + sides[0], width - PAD.right - sides[1]];
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const edge = (bin) => (edges.length === counts.length + 1 ? edges[bin] : low + ((high - low) * bin) / counts.length);
  const widest = Math.max(...counts.map((_, bin) => edge(bin + 1) - edge(bin)));
  const even = counts.every((_, bin) => Math.abs(edge(bin + 1) - edge(bin) - widest) <= widest * 0.02);
  const most = Math.max(...counts, below, above);
  const up = (count) => {
    const part = logarithmic ? Math.log1p(count) / Math.log1p(most) : count / most;
    return bottom - part * (bottom - top);
  };
  const svg = canvas(width, height, `Histogram of ${counts.length} bins from ${figure(low)} to ${figure(high)}`);
  const ticks = logarithmic ? [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10].filter((tick) => tick <= most)
    : niceTicks(0, most, 4);
  const every = Math.ceil(ticks.length / 6);
  ticks.forEach((tick, place) => {
    if (place % every) return;
    rule(svg, "grid", PAD.left, up(tick), width - PAD.right, up(tick));
    label(svg, PAD.left - 5, up(tick) + 4, short(tick), "end");
  });
  const bar = (x1, x2, count, kind, text) => {
    if (!count) return;
    const y = Math.min(up(count), bottom - 1);
    const shape = { class: kind, x: x1, y, width: Math.max(0.75, x2 - x1 - 0.75), height: bottom - y };
    svg.append(titled(drawn("rect", shape), text));
  };
  const across = (value) => left + share(value, low, high) * (right - left);
  counts.forEach((count, bin) => {
    const text = `${figure(edge(bin))} to ${figure(edge(bin + 1))}: ${whole(count)}`;
    if (high > low) bar(across(edge(bin)), across(edge(bin + 1)), count, "fill", text);
    else bar(left + (right - left) * 0.4, left + (right - left) * 0.6, count, "fill", text);
  });
  bar(PAD.left, PAD.left + 11, below, "tail", `below ${figure(low)}: ${whole(below)}`);
  bar(right + 6, right + 17, above, "tail", `above ${figure(high)}: ${whole(above)}`);
  if (high > low) axis(svg, low, high, left, right, bottom);
  else label(svg, (left + right) / 2, bottom + 15, figure(low));
  const notes = even ? [] : ["bins differ in width: heights are counts, not densities"];
  if (below || above) notes.push(`${whole(below + above)} elements beyond the range stand in the bars at the ends`);
  return [svg, ...notes.map((note) => made("small", {}, note))];
}

function short(count) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return figure(count / size, 3) + unit;
  }
  return figure(count, 3);
}

/* Quantiles on a line from the smallest to the largest element, or over a part of that. */
function strip(quantiles, low, high, largest, width) {
  const height = 52;
  const y = 16;
  const [left, right] = [12, width - 12];
  const svg = canvas(width, height, `Quantiles from ${figure(low)} to ${figure(high)}`);
  const across = (value) => left + share(value, low, high) * (right - left);
  const band = (kind, from, to) => {
    if (quantiles[from] === null || quantiles[to] === null) return;
    const [x1, x2] = [across(quantiles[from]), across(quantiles[to])];
    const text = `${100 * DATA.orders[from]} % to ${100 * DATA.orders[to]} %: ${figure(quantiles[from])} to ${figure(quantiles[to])}`;
    const shape = kind === "box" ? drawn("rect", { class: kind, x: x1, y: y - 9, width: Math.max(1, x2 - x1), height: 18 })
      : drawn("line", { class: kind, x1, x2: Math.max(x2, x1 + 1), y1: y, y2: y });
    svg.append(titled(shape, text));
  };
  rule(svg, "grid", left, y, right, y);
  band("range", 0, 8);
  band("wide", 2, 6);
  band("box", 3, 5);
  if (quantiles[4] !== null) rule(svg, "median", across(quantiles[4]), y - 9, across(quantiles[4]), y + 9);
  for (const [index, value] of largest) {
    if (value < low || value > high) continue;
    svg.append(titled(drawn("circle", { class: "dot", cx: across(value), cy: y, r: 3.5 }), `[${index.join(", ")}]: ${figure(value)}`));
  }
  axis(svg, low, high, left, right, y + 16);
  return svg;
}

/* One bar a value; `pick` makes them buttons for the mouse, `current` is marked. */
function bars(values, width, { height = 74, text, current = -1, pick = null, about = "" }) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.length) return made("small", {}, "no values");
  const low = Math.min(0, ...known);
  const high = Math.max(0, ...known);
  const [top, bottom] = [12, height - 4];
  const up = (value) => bottom - share(value, low, high) * (bottom - top);
  const [left, right] = [PAD.left, width - PAD.right];
  const slot = Math.min((right - left) / values.length, 32);
  const svg = canvas(width, height, about || `${values.length} bars from ${figure(low)} to ${figure(high)}`);
  label(svg, left - 5, top + 4, figure(high, 3), "end");
  label(svg, left - 5, up(0) + (low < 0 ? 4 : 0), "0", "end");
  if (low < 0 && up(low) - up(0) > 14) label(svg, left - 5, bottom, figure(low, 3), "end");
  rule(svg, "axis", left, up(0), left + slot * values.length, up(0));
  values.forEach((value, place) => {
    const x = left + place * slot;
    const thick = Math.max(0.6, slot - Math.min(2, slot * 0.2));
    if (value !== null && value !== undefined) {
      const y = Math.min(up(value), up(0));
      const tall = Math.max(1, Math.abs(up(value) - up(0)));
      svg.append(drawn("rect", { class: place === current ? "here" : "fill", x, y, width: thick, height: tall }));
    }
    const hit = drawn("rect", { class: pick ? "hit pick" : "hit", x, y: top, width: slot, height: bottom - top });
    if (pick) hit.addEventListener("click", () => pick(place));
    svg.append(titled(hit, `${text(place)}: ${figure(value)}`));
  });
  return svg;
}

/* Singular values, the largest first, on a logarithmic axis. */
function spectrum(values, width) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return made("small", {}, "all zero");
  const height = 150;
  const [top, bottom] = [10, height - 22];
  const [left, right] = [PAD.left, width - PAD.right - 6];
  const high = Math.log10(positive[0]);
  const low = Math.min(Math.log10(positive[positive.length - 1]), high - 0.05);
  const up = (value) => bottom - ((Math.log10(value) - low) / (high - low)) * (bottom - top);
  const across = (place) => left + 8 + (place / Math.max(1, values.length - 1)) * (right - left - 16);
  const svg = canvas(width, height, `Singular values from ${figure(positive[0])} down to ${figure(positive[positive.length - 1])}`);
  for (const tick of [0, 0.5, 1].map((part) => 10 ** (low + part * (high - low)))) {
    rule(svg, "grid", left, up(tick), right, up(tick));
    label(svg, left - 5, up(tick) + 4, figure(tick, 3), "end");
  }
  rule(svg, "axis", left, bottom, right, bottom);
  svg.append(drawn("polyline", { class: "line", points: positive.map((value, place) => `${across(place)},${up(value)}`).join(" ") }));
  positive.forEach((value, place) => {
    const dot = drawn("circle", { class: "point", cx: across(place), cy: up(value), r: 3.5 });
    svg.append(titled(dot, `${place + 1}: ${figure(value, 6)}`));
  });
  const every = Math.ceil(values.length / 12);
  values.forEach((_, place) => place % every || label(svg, across(place), bottom + 15, String(place + 1)));
  return svg;
}
