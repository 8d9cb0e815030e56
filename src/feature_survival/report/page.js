"use strict";
// Claims are plain HTML; this draws the figures and the feature browser once they are asked for. State is the address's
// hash: #claims, #figures/NAME, #features/MODEL/NUMBER.

const $ = (selector, within = document) => within.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}
const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

const read = {};
const data = (id) => (read[id] ??= JSON.parse($(`[id="data-${id}"]`).textContent)); // parsed when first asked for

const sig = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  const short = Number(value.toPrecision(digits));
  return Math.abs(short) >= 1000 ? short.toLocaleString("en") : String(short);
};
const percent = (value, digits = 1) => (value === null ? "–" : `${(100 * value).toFixed(digits)}%`);

// ---- figures --------------------------------------------------------------------------------------------------------

const WIDTH = 330, HEIGHT = 215, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 36;
const FILTERS = ["model", "method", "site"];

/** The points of a chart as objects, but for those that a filter hides; a point without a method stays. */
function shown(chart) {
  const chosen = Object.fromEntries(FILTERS.map((name) => [name, $(`#filters [name=${name}]`).value]));
  const { points } = chart, found = [];
  for (let i = 0; i < points.x.length; i++) {
    const point = Object.fromEntries(Object.entries(points).map(([name, column]) => [name, column[i]]));
    if (FILTERS.every((name) => !chosen[name] || !point[name] || point[name] === chosen[name])) found.push(point);
  }
  return found;
}

/** From values to a length on paper, with ticks. */
function scale(values, from, to, log, categories) {
  if (categories.length) {
    const place = (x) => from + ((x + 0.5) / categories.length) * (to - from);
    return { place, ticks: categories.map((label, x) => [x, label]) };
  }
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    low = Math.log10(low), high = Math.log10(high);
    const room = 0.06 * (high - low) || 0.1;
    low -= room, high += room;
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++)
      for (const digit of high - low < 0.7 ? [1, 1.1, 1.2, 1.5, 2, 3, 5] : high - low < 2 ? [1, 2, 5] : [1]) {
        const at = Math.log10(digit) + power;
        if (at >= low && at <= high) ticks.push([digit * 10 ** power, sig(digit * 10 ** power)]);
      }
    return { place: (x) => from + ((Math.log10(x) - low) / (high - low)) * (to - from), ticks };
  }
  const room = 0.05 * (high - low) || 0.5;
  low -= room, high += room;
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((digit) => digit * power >= rough) ?? 10);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push([n * step, sig(n * step)]);
  return { place: (x) => from + ((x - low) / (high - low)) * (to - from), ticks };
}

function drawCharts() {
  $("#charts").replaceChildren(...data("charts").map(drawChart));
}

function drawChart(chart) {
  const points = shown(chart);
  const columns = [...new Set(points.map((point) => point[chart.across]))];
  const rows = Object.keys(chart.rows).filter((row) => points.some((point) => point.row === row));
  const lines = Object.keys(chart.looks).filter((line) => points.some((point) => point.line === line));
  const panels = rows.flatMap((row) => {
    const level = chart.references.filter((of) => of.row === row && (!of.model || columns.includes(of.model)));
    const ofRow = points.filter((point) => point.row === row);
    const ys = ofRow.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]);
    const y = scale([...ys, ...level.map((of) => of.y)], HEIGHT - BOTTOM, TOP, chart.log === "y", []);
    const x = scale(points.map((point) => point.x), LEFT, WIDTH - RIGHT, chart.log === "x", chart.categories);
    return columns.map((column) => {
      const here = ofRow.filter((point) => point[chart.across] === column);
      return drawPanel(chart, column, row, here, level.filter((of) => !of.model || of.model === column), x, y);
    });
  });
  return el("article", { class: "chart", id: `figure-${chart.name}` },
    el("h3", { tabindex: -1 }, chart.title),
    el("p", { class: "note" }, chart.says),
    points.length ? el("div", { class: "panels", "--columns": Math.min(4, columns.length) }, panels)
      : el("p", { class: "quiet" }, "Nothing of this figure is left by these filters."),
    el("ul", { class: "key" }, lines.map((line) => {
      const [colour, style] = chart.looks[line];
      return el("li", {}, el("i", { class: `line ${style}`, "--k": `var(--c${colour})` }), line);
    })),
    numbers(chart, points));
}

function drawPanel(chart, column, row, points, level, x, y) {
  const marks = [], drawn = [];
  for (const [at, label] of y.ticks)
    drawn.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y.place(at), y2: y.place(at) }),
      svg("text", { x: LEFT - 4, y: y.place(at) + 3, "text-anchor": "end" }, label));
  for (const [at, label] of x.ticks) {
    const words = chart.categories.length ? label.split(/[ -]/) : [label];
    words.forEach((word, n) => drawn.push(svg("text",
      { class: chart.categories.length ? "small" : null, x: x.place(at), y: HEIGHT - BOTTOM + 12 + 9 * n, "text-anchor": "middle" }, word)));
  }
  if (!chart.categories.length)
    drawn.push(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, chart.x));
  for (const of of level)
    drawn.push(svg("line", { class: "level", x1: LEFT, x2: WIDTH - RIGHT, y1: y.place(of.y), y2: y.place(of.y) }),
      svg("text", { class: "says", x: LEFT + 3, y: y.place(of.y) - 3 }, `${of.label} ${sig(of.y)}`));
  const lines = Object.keys(chart.looks).filter((line) => points.some((point) => point.line === line));
  lines.forEach((line, number) => {
    const [colour, style] = chart.looks[line], k = { "--k": `var(--c${colour})` };
    const step = Math.min(6, (0.75 * (WIDTH - LEFT - RIGHT)) / chart.categories.length / lines.length);
    const apart = chart.categories.length ? step * (number - (lines.length - 1) / 2) : 0; // so that none hides another
    const own = points.filter((point) => point.line === line).sort((a, b) => a.x - b.x);
    const at = own.map((point) => [x.place(point.x) + apart, y.place(point.y)]);
    if (style !== "marks")
      drawn.push(svg("polyline", { class: `line ${style}`, points: at.map((xy) => xy.join(",")).join(" "), ...k }));
    own.forEach((point, n) => {
      const [px, py] = at[n];
      if (point.low !== null && point.high !== null && style !== "thin")
        drawn.push(svg("line", { class: "whiskers", x1: px, x2: px, y1: y.place(point.low), y2: y.place(point.high), ...k }));
      drawn.push(svg("circle", { class: `mark ${style === "dashed" ? "hollow" : ""}`, cx: px, cy: py, r: style === "thin" ? 1.6 : 3, ...k }));
      marks.push({ x: px, y: py, point });
    });
  });
  marks.sort((a, b) => a.x - b.x || a.y - b.y);
  const ring = svg("circle", { class: "at", r: 6, visibility: "hidden" });
  const name = `${column}${chart.rows[row] ? `, ${chart.rows[row]}` : ""}`;
  let current = -1;
  const show = (number) => {
    current = number;
    const { x: cx, y: cy, point } = marks[number];
    put(ring, { cx, cy, visibility: "visible" }, []);
    const box = picture.getBoundingClientRect(), factor = box.width / WIDTH;
    tip(box.left + cx * factor, box.top + cy * factor, describe(chart, point));
  };
  const hide = () => { ring.setAttribute("visibility", "hidden"); $("#tip").hidden = true; };
  const nearest = (event) => {
    const box = picture.getBoundingClientRect(), factor = WIDTH / box.width;
    const px = (event.clientX - box.left) * factor, py = (event.clientY - box.top) * factor;
    const far = marks.map((mark) => Math.hypot(mark.x - px, mark.y - py));
    const best = far.indexOf(Math.min(...far));
    if (best >= 0 && far[best] < 40) show(best); else hide();
  };
  const keys = (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (event.key === "Escape") hide();
    if (!(event.key in steps) || !marks.length) return;
    event.preventDefault();
    show((current + steps[event.key] + marks.length) % marks.length);
  };
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img", "aria-label": `${name}: ${points.length} points; arrow keys move among them`,
    onpointermove: nearest, onpointerdown: nearest, onpointerleave: hide, onblur: hide, onkeydown: keys }, drawn, ring);
  return el("figure", { class: "panel" },
    el("figcaption", {}, column, " ", el("span", {}, chart.rows[row] || "")), picture);
}

function describe(chart, point) {
  const interval = point.low !== null && point.high !== null ? ` [${sig(point.low)}, ${sig(point.high)}]` : "";
  const at = chart.categories.length ? chart.categories[point.x] : `${chart.x}: ${sig(point.x)}`;
  return [el("b", {}, `${sig(point.y)}${interval}`), `${point.line} · ${point.model} · ${point.site}`, el("br"), at, el("br"), point.n];
}

function tip(x, y, content) {
  const box = $("#tip");
  box.replaceChildren(...content);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(x + 12, document.documentElement.clientWidth - width - 4))}px`;
  box.style.top = `${y - height - 10 > 0 ? y - height - 10 : y + 14}px`;
}

/** What is drawn, as a table that is made when it is opened. */
function numbers(chart, points) {
  const names = ["model", "site", "row", "line", "x", "y", "low", "high", "n"];
  const fold = el("details", { class: "more" }, el("summary", {}, `the numbers (${points.length})`));
  fold.addEventListener("toggle", () => {
    if (!fold.open || fold.children.length > 1) return;
    const cell = (point, name) => name === "x" && chart.categories.length ? chart.categories[point.x]
      : typeof point[name] === "number" ? sig(point[name], 4) : point[name] ?? "–";
    fold.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `numbers of ${chart.title}` }, el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, points.map((point) => el("tr", {}, names.map((name) => el("td", {}, cell(point, name)))))))));
  }, { once: false });
  return fold;
}

function fillFilters() {
  for (const name of FILTERS) {
    const values = new Set(data("charts").flatMap((chart) => chart.points[name]).filter(Boolean));
    $(`#filters [name=${name}]`).replaceChildren(el("option", { value: "" }, "all"),
      ...[...values].map((value) => el("option", {}, value)));
  }
  $("#filters").addEventListener("change", drawCharts);
  $("#filters").addEventListener("reset", () => setTimeout(drawCharts));
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
}

// ---- features -------------------------------------------------------------------------------------------------------

const PAGE = 100; // rows that are made at a time
const COLUMNS = [ // key, heading, what it says, how it is printed, whether a phone leaves it out
  ["feature", "feature", "its number", String, false],
  ["fires", "fires most on", "its strongest token", null, false],
  ["rate", "fires on", "firing rate: share of tokens of the dense model", (value) => percent(value, 2), false],
  ["same", "survives", "found again in the pruned model's SAE of the same seeds (cosine ≥ 0.7)", found, false],
  ["other", "survives, other start", "found again in SAEs that started from other weights (share of them)", found, true],
  ["correlation", "correlation", "of its activations, dense against pruned, on the same text", (value) => value === null ? "–" : value.toFixed(2), true],
  ["moved", "displacement", "1 − cosine to where training started it", (value) => sig(value, 2), true],
  ["effect", "causal effect", "rise of cross-entropy where it is ablated in the dense model, nats", (value) => sig(value, 2), true],
];
const SHOWS = {
  all: ["all features", () => true],
  found: ["those that survive", (row) => row.same > 0],
  lost: ["those that do not", (row) => row.same === 0],
  effect: ["those with a causal effect", (row) => row.effect !== null],
};
let rows = [], listed = [], drawnRows = 0, current = null; // of the model that is shown

function found(value) {
  if (value === null) return "–";
  if (value === 1 || value === 0) return el("span", { class: value ? "yes" : "no" }, value ? "yes" : "no");
  return percent(value, 0);
}

/** The pieces of a context's text. */
const words = (context) => current.texts[context[1]].map((piece) => current.pieces[piece]);

/** [place, value, ...] by place. */
const spread = (sparse) => Object.fromEntries(sparse.flatMap((of, n) => (n % 2 ? [[sparse[n - 1], of]] : [])));

const browse = (name) => $(`#browse [name=${name}]`);

function fillControls() {
  browse("show").replaceChildren(...Object.entries(SHOWS).map(([key, [label]]) => el("option", { value: key }, label)));
  browse("sort").replaceChildren(...COLUMNS.filter(([key]) => key !== "fires").flatMap(([key, label]) =>
    key === "feature" ? [el("option", { value: "feature+" }, label)]
      : [el("option", { value: `${key}-` }, `${label}, highest first`), el("option", { value: `${key}+` }, `${label}, lowest first`)]));
  $(".list thead").replaceChildren(el("tr", {}, COLUMNS.map(([key, label, title, , extra]) =>
    el("th", { scope: "col", "data-key": key, title, class: extra ? "extra" : null },
      key === "fires" ? label : el("button", { type: "button", onclick: () => sortBy(key) }, label)))));
  for (const name of ["condition", "show", "sort"]) browse(name).addEventListener("change", list);
  browse("search").addEventListener("input", list);
  $("#browse").addEventListener("submit", (event) => event.preventDefault());
  $("#more").addEventListener("click", () => { const from = drawnRows; drawRows(); $(`.list tbody tr:nth-child(${from + 1}) button`)?.focus(); });
  $(".list tbody").addEventListener("keydown", moveInList);
}

function sortBy(key) {
  const now = browse("sort").value;
  browse("sort").value = key === "feature" || now === `${key}-` ? `${key}+` : `${key}-`;
  list();
}

/** Decode a model's features, the first time its tab is opened. */
function openModel(model) {
  if (current?.model === model) return;
  current = data(`features-${model}`);
  for (const link of document.querySelectorAll(".tabs a")) mark(link, link.textContent === model);
  browse("condition").replaceChildren(...Object.keys(current.conditions).map((name) => el("option", {}, name)));
  browse("search").value = "";
  browse("sort").value = "effect-";
  list();
}

/** The features as rows under the pruned model that is chosen; the text of their contexts once it is searched. */
function gather() {
  const condition = browse("condition").value, { dense, contexts, pieces } = current, under = current.conditions[condition];
  return current.feature.map((feature, i) => {
    return {
      i, feature, best: contexts[i].dense[0] ?? contexts[i][condition][0], rate: dense.rate[i], moved: dense.moved[i], effect: dense.effect[i],
      same: under.same[i], other: under.other[i], correlation: under.correlation[i],
      text: () => (current.found ??= [])[i] ??= Object.values(contexts[i]).flat().map((of) => words(of).join("")).join("\n").toLowerCase(),
    };
  });
}

function list() {
  const query = browse("search").value.trim().toLowerCase(), sort = browse("sort").value;
  const key = sort.slice(0, -1), sign = sort.endsWith("+") ? 1 : -1;
  const test = SHOWS[browse("show").value][1];
  rows = gather();
  listed = rows.filter((row) => test(row) && (!query || String(row.feature) === query || row.text().includes(query)));
  listed.sort((a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || a.feature - b.feature);
  for (const head of document.querySelectorAll(".list thead th")) {
    const own = head.dataset.key === key;
    head.classList.toggle("sorted", own);
    if (own) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending"); else head.removeAttribute("aria-sort");
  }
  $("#about").textContent = `${listed.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} features of the dense SAE ${current.seed} ` +
    `of ${current.model} at ${current.site}, on ${current.tokens.toLocaleString("en")} tokens, beside ${browse("condition").value}. Survival is at tau 0.7.`;
  $(".list tbody").replaceChildren();
  drawnRows = 0;
  drawRows();
}

function drawRows() {
  const sorted = browse("sort").value.slice(0, -1);
  const made = listed.slice(drawnRows, drawnRows + PAGE).map((row) => el("tr", { "data-feature": row.feature, onclick: () => go(row.feature) },
    COLUMNS.map(([key, , , print, extra]) => {
      const style = [extra ? "extra" : "", key === sorted ? "sorted" : "", key === "fires" ? "fires" : ""].join(" ").trim() || null;
      if (key === "feature") return el("th", { scope: "row" }, el("button", { type: "button", "aria-haspopup": "dialog" }, String(row.feature)));
      return el("td", { class: style }, key === "fires" ? strongest(row.best) : print(row[key]));
    })));
  $(".list tbody").append(...made);
  drawnRows += made.length;
  $("#more").hidden = drawnRows >= listed.length;
}

/** The strongest token, marked, with a few on either side. */
function strongest(context) {
  if (!context) return "";
  const [peak] = context, text = (from, to) => words(context).slice(Math.max(0, from), to).join("");
  return [text(peak - 3, peak), el("mark", {}, text(peak, peak + 1)), text(peak + 1, peak + 3)];
}

/** Arrow keys, Home and End move among the rows' buttons. */
function moveInList(event) {
  const at = event.target.closest("tr");
  if (!at || !["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "ArrowDown" && !at.nextElementSibling) drawRows();
  const body = at.parentElement;
  const next = { ArrowDown: at.nextElementSibling, ArrowUp: at.previousElementSibling, Home: body.firstElementChild, End: body.lastElementChild }[event.key];
  $("button", next ?? at).focus();
}

const go = (feature) => { location.hash = `#features/${current.model}/${feature}`; };

function openFeature(number) {
  const dialog = $("#feature"), row = rows.find((of) => of.feature === number);
  if (!row) return closeFeature();
  const condition = browse("condition").value, { dense, contexts } = current;
  const place = listed.findIndex((of) => of.feature === number);
  const step = (by, label) => el("button", { type: "button", disabled: !listed[place + by] || place < 0, onclick: () => go(listed[place + by].feature) }, label);
  const own = contexts[row.i], column = Object.keys(current.conditions).indexOf(condition);
  const told = (of, pruned) => ({ peak: of[0], tokens: words(of), dense: spread(of[2]), pruned: spread(pruned) });
  const inDense = own.dense.map((of) => told(of, of[3 + column])), inPruned = own[condition].map((of) => told(of, of[3]));
  const most = Math.max(0, ...[...inDense, ...inPruned].flatMap((of) => [...Object.values(of.dense), ...Object.values(of.pruned)]));
  const facts = [["fires on", percent(row.rate, 2), "of tokens of the dense model"], ["mean when it fires", sig(dense.mean[row.i]), `at most ${sig(dense.most[row.i])}`],
    ["survives", found(row.same), "same seeds, cosine ≥ 0.7"], ["survives", found(row.other), "other starting weights"],
    ["correlation", row.correlation === null ? "–" : row.correlation.toFixed(2), `dense against ${condition}, same text`],
    ["displacement", sig(row.moved, 2), "1 − cosine to its start"], ["causal effect", sig(row.effect, 2), "nats where ablated; – not measured"]];
  const choose = el("select", { "aria-label": "pruned model", onchange: (event) => { browse("condition").value = event.target.value; list(); openFeature(number); } },
    Object.keys(current.conditions).map((name) => el("option", { selected: name === condition }, name)));
  const focused = dialog.open && dialog.contains(document.activeElement) ? document.activeElement.textContent : null;
  dialog.replaceChildren(
    el("div", { class: "bar2" }, el("h2", { id: "feature-title" }, `Feature ${number} of ${current.model}`), choose, step(-1, "previous"), step(1, "next"),
      el("button", { type: "button", onclick: () => dialog.close() }, "close")),
    el("ul", { class: "tiles" }, facts.map(([name, value, says]) => el("li", {}, el("span", { class: "name" }, name), el("b", {}, value), el("span", {}, says)))),
    el("p", { class: "legend" }, "activation ", el("span", {}, "0"), el("i", { "aria-hidden": "true" }), el("span", {}, sig(most)),
      el("span", { class: "quiet" }, "one scale on both sides; outlined: the strongest token")),
    ...contextsOf("Where it fires most in the dense model", inDense, most, condition),
    ...contextsOf(`Where it fires most in ${condition}`, inPruned, most, condition));
  if (!dialog.open) dialog.showModal();
  ([...dialog.querySelectorAll("button")].find((button) => button.textContent === focused && !button.disabled) ?? $(".bar2 button:last-child", dialog)).focus();
  dialog.scrollTop = 0;
}

function contextsOf(title, found, most, condition) {
  return [el("h3", { class: "where" }, title),
    ...(found.length ? found.map((of) => el("div", { class: "pair" }, side("dense", of, of.dense, most), side(condition, of, of.pruned, most)))
      : [el("p", { class: "quiet" }, "It fires nowhere in this text.")])];
}

/** A context, each token shaded by its activation. */
function side(name, of, activations, most) {
  return el("div", {}, el("span", { class: "side" }, `${name} ${sig(activations[of.peak] ?? 0)}`),
    el("p", { class: "text" }, of.tokens.map((text, n) => {
      const activation = activations[n] ?? 0, share = most ? activation / most : 0;
      if (!activation && n !== of.peak) return text;
      const style = [share > 0.45 ? "hot" : "", n === of.peak ? "peak" : ""].join(" ").trim() || null;
      return el("span", { class: style, "--a": share.toFixed(2), title: sig(activation) }, text);
    })));
}

function closeFeature() {
  if ($("#feature").open) $("#feature").close();
}

// ---- where we are ---------------------------------------------------------------------------------------------------

const mark = (link, here) => (here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current"));

let view = null; // which section is shown

function route() {
  const [asked, first, second] = decodeURIComponent(location.hash.slice(1)).split("/");
  const name = ["figures", "features"].includes(asked) ? asked : "claims";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${name}`;
  if (name !== view) scrollTo(0, 0);
  view = name;
  for (const link of document.querySelectorAll("header nav a")) mark(link, link.hash === `#${name}`);
  $("#tip").hidden = true;
  if (name === "figures") {
    if (!$("#charts").hasChildNodes()) { fillFilters(); drawCharts(); }
    const title = first && $(`[id="figure-${first}"] h3`);
    if (title) { title.scrollIntoView(); title.focus({ preventScroll: true }); }
  }
  if (name === "features") {
    if (!$(".list thead").hasChildNodes()) fillControls();
    const known = [...document.querySelectorAll(".tabs a")].map((link) => link.textContent);
    openModel(known.includes(first) ? first : current?.model ?? known[0]);
  }
  if (name === "features" && second) openFeature(Number(second)); else closeFeature();
}

$("#feature").addEventListener("close", () => {
  const number = location.hash.split("/")[2];
  if (number) history.replaceState(null, "", `#features/${current.model}`);
  const row = [...document.querySelectorAll(".list tbody tr")].find((of) => of.dataset.feature === number);
  if (row) $("button", row).focus();
});
addEventListener("hashchange", route);
route();
