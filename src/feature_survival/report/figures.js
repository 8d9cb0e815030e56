// Figures: a grid of small panels each, filtered, with what stands behind a point on pointing at it or by arrow keys.

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
    const place = { class: chart.categories.length ? "small" : null, x: x.place(at), "text-anchor": "middle" };
    words.forEach((word, n) => drawn.push(svg("text", { ...place, y: HEIGHT - BOTTOM + 12 + 9 * n }, word)));
  }
  if (!chart.categories.length)
    drawn.push(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, chart.x));
  for (const of of level) {
    const at = y.place(of.y), reach = 80; // of a label
    const room = (half) => Math.min(HEIGHT, ...points.filter(half).map((point) => Math.abs(y.place(point.y) - at + 6)));
    const left = room((point) => x.place(point.x) < LEFT + reach) >=
      room((point) => x.place(point.x) > WIDTH - RIGHT - reach);
    const place = left ? { x: LEFT + 3 } : { x: WIDTH - RIGHT - 3, "text-anchor": "end" }; // where fewer lines run
    drawn.push(svg("line", { class: "level", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }),
      svg("text", { class: "says", y: at - 3, ...place }, `${of.label} ${sig(of.y)}`));
  }
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
      if (hasInterval(point) && style !== "thin") {
        const [y1, y2] = [y.place(point.low), y.place(point.high)];
        drawn.push(svg("line", { class: "whiskers", x1: px, x2: px, y1, y2, ...k }));
      }
      const look = style === "dashed" ? "mark hollow" : "mark";
      drawn.push(svg("circle", { class: look, cx: px, cy: py, r: style === "thin" ? 1.6 : 3, ...k }));
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
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img",
    "aria-label": `${name}: ${points.length} points; arrow keys move among them`,
    onpointermove: nearest, onpointerdown: nearest, onpointerleave: hide, onblur: hide, onkeydown: keys,
  }, drawn, ring);
  return el("figure", { class: "panel" },
    el("figcaption", {}, column, " ", el("span", {}, chart.rows[row] || "")), picture);
}

const hasInterval = (point) => point.low !== null && point.high !== null;

function describe(chart, point) {
  const interval = hasInterval(point) ? ` [${sig(point.low)}, ${sig(point.high)}]` : "";
  const at = chart.categories.length ? chart.categories[point.x] : `${chart.x}: ${sig(point.x)}`;
  const who = `${point.line} · ${point.model} · ${point.site}`;
  return [el("b", {}, `${sig(point.y)}${interval}`), who, el("br"), at, el("br"), point.n];
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
    const region = { class: "scroll", tabindex: 0, role: "region", "aria-label": `numbers of ${chart.title}` };
    fold.append(el("div", region, el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, points.map((point) => el("tr", {}, names.map((name) => el("td", {}, cell(point, name)))))))));
  });
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
