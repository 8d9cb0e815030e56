// The feature browser: a list that is searched and sorted, and a feature's contexts, dense and pruned side by side.

const PAGE = 100; // rows that are made at a time
const decimals = (value) => (value === null ? "–" : value.toFixed(2));
const short = (value) => sig(value, 2);
const COLUMNS = [ // key, heading, what it says, how it is printed, whether a phone leaves it out
  ["feature", "feature", "its number", String, false],
  ["fires", "fires most on", "its strongest token", null, false],
  ["rate", "fires on", "firing rate: share of tokens of the dense model", (value) => percent(value, 2), false],
  ["same", "survives", "found again in the pruned model's SAE of the same seeds", survived, false],
  ["other", "survives, other start", "found again in SAEs that started from other weights (share)", survived, true],
  ["correlation", "correlation", "of its activations, dense against pruned, on the same text", decimals, true],
  ["moved", "displacement", "1 − cosine to where training started it", short, true],
  ["effect", "causal effect", "rise of cross-entropy where it is ablated in the dense model, nats", short, true],
];
const SHOWS = {
  all: ["all features", () => true],
  found: ["those that survive", (row) => row.same > 0],
  lost: ["those that do not survive", (row) => row.same === 0],
  effect: ["those with a causal effect", (row) => row.effect !== null],
};
let current = null; // the model that is shown
let rows = [], listed = [], drawnRows = 0; // its features; those asked for, in order; how many of these are drawn

function survived(value) {
  if (value === null) return "–";
  if (value === 1 || value === 0) return el("span", { class: value ? "yes" : "no" }, value ? "yes" : "no");
  return percent(value, 0);
}

/** The pieces of a context's text. */
const words = (context) => current.texts[context[1]].map((piece) => current.pieces[piece]);

/** [place, value, ...] by place. */
const spread = (sparse) => Object.fromEntries(sparse.flatMap((of, n) => (n % 2 ? [[sparse[n - 1], of]] : [])));

const browse = (name) => $(`#browse [name=${name}]`);
const conditions = (chosen) =>
  Object.keys(current.conditions).map((name) => el("option", { selected: name === chosen }, name));

function fillControls() {
  browse("show").replaceChildren(...Object.entries(SHOWS).map(([key, [label]]) => el("option", { value: key }, label)));
  browse("sort").replaceChildren(...COLUMNS.filter(([key]) => key !== "fires").flatMap(([key, label]) =>
    key === "feature" ? [el("option", { value: "feature+" }, label)] : [
      el("option", { value: `${key}-` }, `${label}, highest first`),
      el("option", { value: `${key}+` }, `${label}, lowest first`),
    ]));
  $(".list thead").replaceChildren(el("tr", {}, COLUMNS.map(([key, label, title, , extra]) =>
    el("th", { scope: "col", "data-key": key, title, class: extra ? "extra" : null },
      key === "fires" ? label : el("button", { type: "button", onclick: () => sortBy(key) }, label)))));
  for (const name of ["condition", "show", "sort"]) browse(name).addEventListener("change", list);
  browse("search").addEventListener("input", list);
  $("#browse").addEventListener("submit", (event) => event.preventDefault());
  $("#more").addEventListener("click", () => {
    const last = $(".list tbody").lastElementChild;
    drawRows();
    $("button", last.nextElementSibling ?? last).focus();
  });
  $(".list tbody").addEventListener("keydown", moveInList);
}

function sortBy(key) {
  const now = browse("sort").value;
  browse("sort").value = key === "feature" || now === `${key}-` ? `${key}+` : `${key}-`;
  list();
}

/** Show a model; its features are decoded the first time. */
function openModel(model) {
  if (current?.model === model) return;
  current = data(`features-${model}`);
  for (const link of document.querySelectorAll(".tabs a")) mark(link, link.textContent === model);
  browse("condition").replaceChildren(...conditions(browse("condition").value));
  browse("search").value = "";
  browse("sort").value = "effect-";
  list();
}

/** The features as rows, under the pruned model that is chosen. */
function gather() {
  const condition = browse("condition").value, { dense, contexts } = current, under = current.conditions[condition];
  return current.feature.map((feature, i) => ({
    i, feature, rate: dense.rate[i], moved: dense.moved[i], effect: dense.effect[i],
    same: under.same[i], other: under.other[i], correlation: under.correlation[i],
    best: contexts[i].dense[0] ?? contexts[i][condition][0],
  }));
}

/** All that a feature fires on, for searching. */
function textOf(i) {
  current.searched ??= [];
  const texts = () => Object.values(current.contexts[i]).flat().map((of) => words(of).join(""));
  return current.searched[i] ??= texts().join("\n").toLowerCase();
}

function list() {
  const query = browse("search").value.trim().toLowerCase(), sort = browse("sort").value;
  const key = sort.slice(0, -1), sign = sort.endsWith("+") ? 1 : -1;
  const test = SHOWS[browse("show").value][1];
  rows = gather();
  const asked = (row) => !query || String(row.feature) === query || textOf(row.i).includes(query);
  listed = rows.filter((row) => test(row) && asked(row));
  listed.sort((a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || a.feature - b.feature);
  for (const head of document.querySelectorAll(".list thead th")) {
    const own = head.dataset.key === key;
    head.classList.toggle("sorted", own);
    if (own) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  const [some, all, tokens] = [listed.length, rows.length, current.tokens].map((count) => count.toLocaleString("en"));
  $("#about").textContent =
    `${some} of ${all} features of the dense SAE ${current.seed} of ${current.model} at ${current.site}, ` +
    `on ${tokens} tokens, beside ${browse("condition").value}. Found again: cosine of ${current.tau} at least.`;
  $(".list tbody").replaceChildren();
  drawnRows = 0;
  drawRows();
}

/** The next rows of the list. */
function drawRows() {
  const sorted = browse("sort").value.slice(0, -1);
  const made = listed.slice(drawnRows, drawnRows + PAGE).map((row) =>
    el("tr", { "data-feature": row.feature, onclick: () => go(row.feature) }, COLUMNS.map(([key, , , print, extra]) => {
      if (key === "feature") {
        const button = el("button", { type: "button", "aria-haspopup": "dialog" }, String(row.feature));
        return el("th", { scope: "row" }, button);
      }
      const style = [key === "fires" && "fires", extra && "extra", key === sorted && "sorted"].filter(Boolean);
      return el("td", { class: style.join(" ") || null }, key === "fires" ? strongest(row.best) : print(row[key]));
    })));
  $(".list tbody").append(...made);
  drawnRows += made.length;
  $("#more").hidden = drawnRows >= listed.length;
}

/** The strongest token, marked, with a few on either side. */
function strongest(context) {
  if (!context) return "";
  const [peak] = context, pieces = words(context);
  const text = (from, to) => pieces.slice(Math.max(0, from), to).join("");
  return [text(peak - 3, peak), el("mark", {}, text(peak, peak + 1)), text(peak + 1, peak + 3)];
}

/** Arrow keys, Home and End move among the rows' buttons. */
function moveInList(event) {
  const row = event.target.closest("tr");
  if (!row || !["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "ArrowDown" && !row.nextElementSibling) drawRows();
  const { firstElementChild: Home, lastElementChild: End } = row.parentElement;
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home, End }[event.key];
  $("button", next ?? row).focus();
}

const go = (feature) => { location.hash = `#features/${current.model}/${feature}`; };

function openFeature(number) {
  const dialog = $("#feature"), row = rows.find((of) => of.feature === number);
  if (!row) return closeFeature();
  const condition = browse("condition").value, { dense, contexts } = current;
  const column = Object.keys(current.conditions).indexOf(condition), own = contexts[row.i];
  const told = (of, pruned) => ({ peak: of[0], tokens: words(of), dense: spread(of[2]), pruned: spread(pruned) });
  const inDense = own.dense.map((of) => told(of, of[3 + column]));
  const inPruned = own[condition].map((of) => told(of, of[3]));
  const shown = [...inDense, ...inPruned].flatMap((of) => [of.dense, of.pruned].flatMap(Object.values));
  const most = Math.max(0, ...shown);
  const facts = [
    ["fires on", percent(row.rate, 2), "of tokens of the dense model"],
    ["mean when it fires", sig(dense.mean[row.i]), `at most ${sig(dense.most[row.i])}`],
    ["survives", survived(row.same), `same seeds, cosine ≥ ${current.tau}`],
    ["survives", survived(row.other), "other starting weights"],
    ["correlation", decimals(row.correlation), `dense against ${condition}, same text`],
    ["displacement", sig(row.moved, 2), "1 − cosine to its start"],
    ["causal effect", sig(row.effect, 2), "nats where ablated; – not measured"],
  ];
  const choose = (event) => {
    browse("condition").value = event.target.value;
    list();
    openFeature(number);
  };
  const focused = dialog.open ? document.activeElement.textContent : null;
  dialog.replaceChildren(
    el("div", { class: "top" },
      el("h2", { id: "feature-title" }, `Feature ${number} of ${current.model}`),
      el("select", { "aria-label": "pruned model", onchange: choose }, conditions(condition)),
      step(number, -1, "previous"), step(number, 1, "next"),
      el("button", { type: "button", onclick: () => dialog.close() }, "close")),
    el("ul", { class: "tiles" }, facts.map(([name, value, says]) =>
      el("li", {}, el("span", { class: "name" }, name), el("b", {}, value), el("span", {}, says)))),
    el("p", { class: "legend" },
      "activation ", el("span", {}, "0"), el("i", { "aria-hidden": "true" }), el("span", {}, sig(most)),
      el("span", { class: "quiet" }, "one scale on both sides; outlined: the strongest token")),
    ...contextsOf("Where it fires most in the dense model", inDense, most, condition),
    ...contextsOf(`Where it fires most in ${condition}`, inPruned, most, condition));
  if (!dialog.open) dialog.showModal();
  const controls = [...dialog.querySelectorAll("button, select")].filter((of) => !of.disabled);
  (controls.find((of) => of.textContent === focused) ?? controls.at(-1)).focus();
  dialog.scrollTop = 0;
}

/** A button to the feature that stands before or after another in the list. */
function step(number, by, label) {
  const place = listed.findIndex((of) => of.feature === number), next = place < 0 ? undefined : listed[place + by];
  return el("button", { type: "button", disabled: !next, onclick: () => go(next.feature) }, label);
}

function contextsOf(title, found, most, condition) {
  const pairs = found.map((of) =>
    el("div", { class: "pair" }, side("dense", of, of.dense, most), side(condition, of, of.pruned, most)));
  return [
    el("h3", { class: "where" }, title),
    ...(pairs.length ? pairs : [el("p", { class: "quiet" }, "It fires nowhere in this text.")]),
  ];
}

/** A context in one model, each token shaded by its activation. */
function side(name, of, activations, most) {
  const tokens = of.tokens.map((text, n) => {
    const activation = activations[n] ?? 0, share = most ? activation / most : 0;
    if (!activation && n !== of.peak) return text;
    const style = [share > 0.65 && "hot", n === of.peak && "peak"].filter(Boolean).join(" ");
    return el("span", { class: style || null, "--a": share.toFixed(2), title: sig(activation) }, text);
  });
  const value = sig(activations[of.peak] ?? 0);
  return el("div", {}, el("span", { class: "side" }, `${name} ${value}`), el("p", { class: "text" }, tokens));
}

function closeFeature() {
  if ($("#feature").open) $("#feature").close();
}
