(() => {
  "use strict";
  const D = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement, $ = (q, e = document) => e.querySelector(q), $$ = (q, e = document) => [...e.querySelectorAll(q)];
  root.classList.add("on");

  // Text only ever enters the page as text: nothing here parses markup.
  const SVG = "http://www.w3.org/2000/svg";
  const put = (e, attributes, children) => {
    for (const [k, v] of Object.entries(attributes || {})) if (v !== null && v !== undefined) e.setAttribute(k, v);
    e.append(...children.flat().filter((c) => c !== null && c !== undefined));
    return e;
  };
  const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
  const sv = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
  const number = (x, digits = 3) => {
    if (x === null || x === undefined) return "–";
    x = Number(x);
    if (!isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x === 0) return "0";
    const size = Math.abs(x);
    let text;
    if (size >= 1e7 || size < 1e-4) text = x.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
    else {
      const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
      text = x.toLocaleString("en-US", { maximumFractionDigits: decimals, roundingMode: "halfEven" });
    }
    return text.replace(/^-/, "−");
  };
  const ratio = (x) => number(x, x !== null && Math.abs(x) < 100 ? 2 : 3);
  const percent = (x) => (x === null ? "–" : x > 0 && x < 0.001 ? "< 0.1 %" : number(100 * x, x < 0.0995 ? 2 : 3).replace(/\.\d+$/, (m) => (x < 0.0995 ? m : "")) + " %");
  const many = (n, noun) => `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;

  // Tooltip: pointer and keyboard alike.
  const tip = $("#tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 12, innerWidth - box.width - 6)) + "px";
    tip.style.top = (y - box.height - 12 > 4 ? y - box.height - 12 : y + 16) + "px";
  };
  const hide = () => { tip.hidden = true; };
  const told = (e) => {
    const t = e.target.closest && e.target.closest("[data-tip],[data-h],[data-k]");
    if (!t) return null;
    if (t.dataset.tip) return [t, t.dataset.tip];
    if (t.dataset.h) return [t, headTip(D.heads[t.dataset.h])];
    return [t, siteTip(t.dataset.k)];
  };
  document.addEventListener("pointerover", (e) => { const t = told(e); if (t) show(t[1], e.clientX, e.clientY); else if (!e.target.closest || !e.target.closest(".hit")) hide(); });
  document.addEventListener("focusin", (e) => { const t = told(e); if (t && e.target.matches(":focus-visible")) { const b = t[0].getBoundingClientRect(); show(t[1], b.left, b.top); } });
  document.addEventListener("focusout", hide);
  addEventListener("scroll", hide, { passive: true });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
  const headTip = (h) => {
    const [layer, head, position, mass, rate, uniform, entropy, logit, sink, value, token] = h;
    return `layer ${layer}, head ${head}\n${percent(mass)} on position ${position}${token ? ` ${token}` : ""} (uniform ${percent(uniform)})` +
      `\nsink in ${percent(rate)} of inputs\nentropy ${percent(entropy)} of uniform · largest logit ${number(logit)}\nvalue norm there ${number(value, 2)} × the others` +
      (sink ? `\nlearned sink takes ${percent(sink)}` : "");
  };
  const siteTip = (k) => {
    const s = D.sites[k], m = D.matrices[k];
    if (s) return `${k}\nlargest ${number(s.facts[0])}, median ${number(s.facts[1])}: ${ratio(s.facts[2])} ×\n${many(s.facts[13], "outlier channel")} of ${s.width.toLocaleString("en-US")}`;
    return m ? `${k}\nlargest ${number(m.facts[0])}, median ${number(m.facts[1])}` : k;
  };

  // Theme: the system's unless chosen here or by #dark / #light.
  const hash = () => location.hash.slice(1).split("&").filter(Boolean).map((x) => { const i = x.indexOf("="); return i < 0 ? [x, ""] : [x.slice(0, i), decodeURIComponent(x.slice(i + 1))]; });
  const given = Object.fromEntries(hash());
  if ("dark" in given) root.dataset.theme = "dark";
  if ("light" in given) root.dataset.theme = "light";
  $("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Strips: undo the packing of strips.py.
  const unpack = (strip, key) => {
    const raw = atob(strip[key]), view = new DataView(new ArrayBuffer(raw.length));
    for (let i = 0; i < raw.length; i++) view.setUint8(i, raw.charCodeAt(i));
    const top = Math.asinh(strip.M / strip.m) / 32767;
    return Float64Array.from({ length: raw.length / 2 }, (_, i) => strip.m * Math.sinh(view.getInt16(2 * i, true) * top));
  };
  const ticks = (low, high, about) => {
    const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough || 1));
    const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10), out = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) out.push(Math.abs(t) < step * 1e-9 ? 0 : t);
    return out;
  };
  const logTicks = (low, high, unit) => {
    const out = [0], first = Math.ceil(Math.log10(unit)), last = Math.floor(Math.log10(Math.max(-low, high)));
    for (let e = first; e <= last; e++) for (const t of [-(10 ** e), 10 ** e]) if (t >= low && t <= high) out.push(t);
    return out;
  };

  /* Plan and two elevations of a tensor, as of a building: above, the range of every channel; below, where the largest values stand
     (position by channel); right, how large each position gets. The picture that papers draw in three dimensions, without hidden parts. */
  function plan(box, o) {
    const W = Math.max(280, box.clientWidth), narrow = W < 560, hasY = !!o.y;
    const left = 54, right = hasY ? (narrow ? 62 : Math.min(170, W * 0.17)) : 10, gap = 14, topH = narrow ? 180 : 230, planH = hasY ? (narrow ? 150 : 190) : 0, pad = 22;
    const H = pad + topH + (hasY ? gap + planH : 0) + 36, w = W - left - right - (hasY ? gap : 0);
    const hi = unpack(o.x, "hi"), lo = o.x.lo ? unpack(o.x, "lo") : new Float64Array(hi.length);
    const f = o.log ? (v) => Math.asinh(v / o.x.m) : (v) => v;
    let low = Math.min(0, ...lo), high = Math.max(0, ...hi);
    const fl = f(low), fh = f(high), margin = (fh - fl) * 0.07 || 1;
    const y0 = fl - (low < 0 ? margin : 0), y1 = fh + (high > 0 ? margin : 0);
    const Y = (v) => pad + ((y1 - f(v)) / (y1 - y0)) * topH, X = (i) => left + ((i + 0.5) / o.x.n) * w, column = w / hi.length;
    const g = [];
    for (const t of o.log ? logTicks(low, high, o.x.m) : ticks(low, high, narrow ? 4 : 6))
      g.push(sv("line", { class: "g", x1: left, x2: left + w, y1: Y(t), y2: Y(t) }), sv("text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, number(t)));
    if (o.median && o.x.lo) g.push(sv("rect", { class: "band", x: left, width: w, y: Y(o.median), height: Math.max(1, Y(-o.median) - Y(o.median)) }));
    const marked = new Set(o.names.filter((c) => c.flag).map((c) => Math.floor(c.at / o.x.k)));
    const path = (keep) => Array.from(hi, (h, i) => (keep(i) ? `M${(left + (i + 0.5) * column).toFixed(1)},${Y(h).toFixed(1)}V${(Y(lo[i]) + (Math.abs(Y(lo[i]) - Y(h)) < 1 ? 1 : 0)).toFixed(1)}` : "")).join("");
    const thick = Math.max(1, column * (column > 3 ? 0.8 : 1));
    g.push(sv("path", { class: "bars", d: path((i) => !marked.has(i)), "stroke-width": thick }), sv("path", { class: "bars f", d: path((i) => marked.has(i)), "stroke-width": Math.max(1.6, thick) }));
    g.push(sv("text", { x: 2, y: 12 }, o.value));
    const taken = [];
    for (const c of o.names) {
      if (!c.flag && taken.length > 2) continue;
      const up = Math.abs(c.high) >= Math.abs(c.low), x = X(c.at), y = up ? Y(c.high) - 5 : Y(c.low) + 12, label = String(c.at), half = label.length * 3.6 + 2;
      if (taken.length >= (narrow ? 5 : 12) || taken.some((t) => Math.abs(t[0] - x) < t[2] + half && Math.abs(t[1] - y) < 12)) continue;
      taken.push([x, y, half]);
      g.push(sv("text", { class: "name" + (c.flag ? " f" : ""), x: Math.max(left + half, Math.min(x, left + w - half)), y, "text-anchor": "middle" }, label));
    }
    const base = pad + topH + (hasY ? gap + planH : 0);
    for (const t of ticks(0, o.x.n - 1, narrow ? 4 : 8)) if (Number.isInteger(t)) g.push(sv("text", { x: X(t), y: base + 15, "text-anchor": "middle" }, t.toLocaleString("en-US")));
    g.push(sv("text", { x: left + w / 2, y: base + 31, "text-anchor": "middle" }, o.xName));
    const cursor = sv("line", { class: "cursor", y1: pad, y2: base, visibility: "hidden" });
    if (hasY) {
      const top = pad + topH + gap, P = (i) => top + ((i + 0.5) / o.y.n) * planH, size = unpack(o.y, "hi"), row = planH / size.length;
      const biggest = Math.max(...size), F = o.log ? (v) => Math.asinh(v / o.y.m) / Math.asinh(biggest / o.y.m) : (v) => v / biggest, x0 = left + w + gap;
      g.push(sv("rect", { class: "frame", x: left, y: top, width: w, height: planH }));
      for (const c of o.names) if (c.flag) g.push(sv("line", { class: "guide", x1: X(c.at), x2: X(c.at), y1: top, y2: top + planH }));
      for (const t of ticks(0, o.y.n - 1, 4)) if (Number.isInteger(t)) g.push(sv("text", { x: left - 6, y: P(t) + 4, "text-anchor": "end" }, t.toLocaleString("en-US")));
      g.push(sv("text", { x: 10, y: top + planH / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${top + planH / 2})` }, o.yName));
      g.push(sv("path", { class: "bars", "stroke-width": Math.max(1, row > 4 ? row * 0.8 : row), d: Array.from(size, (v, i) => `M${x0},${(top + (i + 0.5) * row).toFixed(1)}H${(x0 + Math.max(0.5, F(v) * (right - 8))).toFixed(1)}`).join("") }));
      const peak = size.indexOf(biggest), word = o.y.k > 1 ? `${peak * o.y.k}–${Math.min(o.y.n, (peak + 1) * o.y.k) - 1}` : peak;
      g.push(sv("text", { x: x0, y: top - 5 }, narrow ? number(biggest) : `${o.yName} ${word}: ${number(biggest)}`), sv("line", { class: "g", x1: x0, x2: x0, y1: top, y2: top + planH }));
      const largest = Math.max(...o.dots.map((d) => Math.abs(d.value)), 1e-30);
      for (const d of o.dots) g.push(sv("circle", { class: "dot " + (d.value < 0 ? "neg" : "pos"), cx: X(d.x), cy: P(d.y), r: (2.4 + 3.6 * Math.abs(d.value) / largest).toFixed(1), "data-tip": d.tip }));
      for (let i = 0; i < size.length; i++) g.push(sv("rect", { class: "hit", x: x0, y: top + i * row, width: right - 4, height: row, "data-tip": `${o.yName} ${o.y.k > 1 ? `${i * o.y.k}–${Math.min(o.y.n, (i + 1) * o.y.k) - 1}` : i}: ${number(size[i])}` }));
    }
    const hit = sv("rect", { class: "hit", x: left, y: pad, width: w, height: topH });
    hit.addEventListener("pointermove", (e) => {
      const b = hit.getBoundingClientRect(), i = Math.min(hi.length - 1, Math.max(0, Math.floor(((e.clientX - b.left) / b.width) * hi.length)));
      const first = i * o.x.k, last = Math.min(o.x.n, first + o.x.k) - 1, x = left + (i + 0.5) * column;
      put(cursor, { x1: x, x2: x, visibility: "visible" }, []);
      show(`${o.xName.replace(/ .*/, "")}${first === last ? ` ${first}` : `s ${first}–${last}`}\n${o.x.lo ? `${number(lo[i])} to ` : ""}${number(hi[i])}`, e.clientX, e.clientY);
    });
    hit.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hide(); });
    g.push(cursor, hit);
    box.replaceChildren(sv("svg", { class: "plan", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": o.label }, ...g));
  }

  const table = (caption, head, rows) => el("div", { class: "scroll" }, el("table", { class: "data" }, el("caption", null, el("span", null, caption)),
    el("thead", null, el("tr", null, ...head.map((h, i) => el("th", { scope: "col", class: i ? "n" : null }, h)))),
    el("tbody", null, ...rows.map((r) => el("tr", null, ...r.map((c, i) => el(i ? "td" : "th", i ? { class: "n" } : { scope: "row" }, el("bdi", null, String(c)))))))));
  const fact = (k, v) => el("div", null, el("dt", null, k), el("dd", null, v));
  const meaning = (part) => { const e = $$("#method details dt").find((d) => d.textContent === part); return e ? e.nextElementSibling.textContent : ""; };

  // A panel shows one chosen tensor: facts, plan, exact tables.
  function panel(box, grid, all, spec, remember) {
    if (!box || !Object.keys(all).length) return;
    let current = null, log = "log" in given, shown = null;
    const names = Object.keys(all), figure = el("div"), heading = el("h3", { "aria-live": "polite" }), about = el("p", { class: "meaning" });
    const facts = el("dl", { class: "facts" }), tables = el("div", { class: "tables" }), caption = el("figcaption");
    const step = (by) => { const s = all[current], same = names.filter((k) => all[k].part === s.part && all[k].expert === s.expert), i = same.indexOf(current) + by; if (same[i]) choose(same[i]); };
    const back = el("button", { type: "button", "aria-label": "previous layer" }, "← layer"), on = el("button", { type: "button", "aria-label": "next layer" }, "layer →");
    const scale = el("button", { type: "button" }, "linear scale");
    const list = el("select", { "aria-label": "tensor" }, ...names.map((k) => el("option", { value: k }, k)));
    box.replaceChildren(el("div", { class: "bar" }, heading, list, back, on, scale), about, facts, el("figure", null, figure, caption), tables);
    const draw = () => {
      if (shown) plan(figure, { ...shown, log });
      scale.textContent = log ? "scale: logarithmic" : "scale: linear";
      scale.setAttribute("aria-label", `${scale.textContent}; switch`);
    };
    function choose(k, quiet) {
      const s = all[k];
      if (!s) return;
      current = k;
      const view = spec(k, s);
      shown = view.plan;
      heading.textContent = (s.layer === null ? "" : `layer ${s.layer} · `) + s.part + (s.expert === null ? "" : ` · expert ${s.expert}`);
      about.textContent = meaning(s.part);
      list.value = k;
      facts.replaceChildren(...view.facts.map((f) => fact(...f)));
      tables.replaceChildren(...view.tables);
      caption.textContent = shown ? view.caption : "";
      figure.replaceChildren(...(shown ? [] : ["Nothing was measured by channel here."]));
      const same = names.filter((n) => all[n].part === s.part && all[n].expert === s.expert), i = same.indexOf(k);
      back.disabled = i <= 0;
      on.disabled = i < 0 || i >= same.length - 1;
      scale.hidden = !shown;
      for (const b of $$("button[data-k]", grid)) b.setAttribute("aria-pressed", b.dataset.k === k && !b.classList.contains("same"));
      draw();
      if (!quiet) try { history.replaceState(null, "", `#${remember}=${encodeURIComponent(k)}`); } catch { /* a sandboxed page keeps its address */ }
    }
    list.addEventListener("change", () => choose(list.value));
    back.addEventListener("click", () => step(-1));
    on.addEventListener("click", () => step(1));
    scale.addEventListener("click", () => { log = !log; draw(); });
    if (grid) grid.addEventListener("click", (e) => { const b = e.target.closest("button[data-k]"); if (b) choose(b.dataset.k); });
    let width = 0;
    new ResizeObserver(() => { if (figure.clientWidth !== width) { width = figure.clientWidth; requestAnimationFrame(draw); } }).observe(figure);
    addEventListener("hashchange", () => { const k = Object.fromEntries(hash())[remember]; if (k && k !== current) choose(k, true); });
    choose(all[given[remember]] ? given[remember] : all[box.dataset.first] ? box.dataset.first : names[0], true);
  }

  panel($("#panel-a"), $("#sites-heat"), D.sites, (k, s) => {
    const [abs, median, most, kurtosis, energy, top1, top1pct, gini, for99, gain, off, , sign, outliers] = s.facts;
    const top = s.top || [], values = s.values || [];
    return {
      facts: [["largest |x|", number(abs)], ["median |x|", number(median)], ["ratio", ratio(most)], ["kurtosis", number(kurtosis)], ["energy concentration", `${number(energy)} of ${s.width.toLocaleString("en-US")}`],
        ["range in top channel", percent(top1)], ["in top 1 %", percent(top1pct)], ["Gini", number(gini, 2)], ["channels for 99 %", for99.toLocaleString("en-US")], ["gain of centring", `${number(gain)} ×`], ["off-centre channels", off.toLocaleString("en-US")], ...(sign === null ? [] : [["sign consistency", percent(sign)]])],
      plan: s.x && {
        x: s.x, y: s.y, median, value: "range of every channel", xName: "channel", yName: "position", names: top.map((c) => ({ at: c[0], low: Number(c[1]), high: Number(c[2]), flag: c[5] })),
        dots: values.map(([v, p, c, t, n]) => ({ value: Number(v), x: c, y: p, tip: `${number(v)} in channel ${c}\nposition ${p}${t ? `, ${t}` : ""}${n > 1 ? `\n${n} inputs` : ""}` })),
        label: `Ranges of the ${s.width} channels of ${k}; ${many(outliers, "outlier channel")}. The tables below list the widest channels and the largest values.`,
      },
      caption: `Above: smallest to largest value of every channel${s.x && s.x.k > 1 ? ` (${s.x.k} neighbours share a column, the extremes kept)` : ""}; findings in orange, the band is ± the median. Below: where the ${values.length} largest places stand, orange positive, blue negative. Right: mean over inputs of the largest |x| at each position.`,
      tables: [table("Widest channels", ["Channel", "Smallest", "Largest", "Mean", "Std"], top.slice(0, 12).map((c) => [c[0] + (c[5] ? " ●" : ""), ...c.slice(1, 5).map((x) => number(x))])),
        table("Largest values", ["Token", "Position", "Channel", "Value", "Inputs"], values.slice(0, 12).map(([v, p, c, t, n]) => [t === null ? "–" : t, p, c, number(v), n]))],
    };
  }, "site");

  panel($("#panel-w"), $("#weights-heat"), D.matrices, (k, m) => {
    const [abs, median, std, kurtosis, nan, inf] = m.facts, columns = m.columns || [], rows = m.rows || [], entries = m.entries || [];
    const flat = m.x ? null : m.y;
    return {
      facts: [["shape", m.shape.join(" × ")], ["largest |w|", number(abs)], ["median |w|", number(median)], ["standard deviation", number(std)], ["kurtosis", number(kurtosis)], ...(nan || inf ? [["NaN / infinite", `${nan} / ${inf}`]] : [])],
      plan: m.x || flat ? {
        x: m.x || flat, y: m.x ? m.y : null, value: "norm of every column", xName: "column (input)", yName: "row", names: (m.x ? columns : rows).map((c) => ({ at: c[0], low: 0, high: Number(c[1]), flag: c[2] })),
        dots: entries.map(([v, r, c]) => ({ value: Number(v), x: c, y: r, tip: `${number(v)}\nrow ${r}, column ${c}` })), label: `Column and row norms of ${k}; the tables below list the largest.`,
      } : null,
      caption: "Above: Euclidean norm of every column. Right: of every row. Between: where the largest weights stand.",
      tables: [table("Largest weights", ["Row", "Column", "Value"], entries.map(([v, r, c]) => [r, c, number(v)])),
        table("Longest rows and columns", ["Line", "Norm"], [...rows.slice(0, 6).map((r) => [`row ${r[0]}${r[2] ? " ●" : ""}`, number(r[1])]), ...columns.slice(0, 6).map((r) => [`column ${r[0]}${r[2] ? " ●" : ""}`, number(r[1])])])],
    };
  }, "matrix");

  // Heat maps: one tab stop each, arrows move.
  for (const grid of $$("table.heat")) {
    const cells = () => $$("tbody tr", grid).map((r) => $$("td", r).map((d) => d.firstElementChild));
    const first = $("[aria-pressed=true]", grid) || $("[tabindex='-1']", grid);
    if (first) first.tabIndex = 0;
    grid.addEventListener("focusin", (e) => { $$("[tabindex='0']", grid).forEach((c) => { c.tabIndex = -1; }); e.target.tabIndex = 0; });
    grid.addEventListener("keydown", (e) => {
      const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
      if (!by) return;
      const all = cells();
      let y = all.findIndex((r) => r.includes(document.activeElement)), x = y < 0 ? -1 : all[y].indexOf(document.activeElement);
      if (y < 0) return;
      e.preventDefault();
      for (y += by[0], x += by[1]; all[y] && x >= 0 && x < all[y].length; y += by[0], x += by[1]) if (all[y][x] && all[y][x].hasAttribute("tabindex")) { all[y][x].focus(); return; }
    });
  }

  // Findings: filter, sort, fifty at a time.
  const body = $("#table tbody");
  if (body) {
    const at = Object.fromEntries(D.findings.fields.map((k, i) => [k, i])), rows = D.findings.rows, get = (r, k) => r[at[k]];
    const place = (r) => ["channel", "row", "column", "head", "position"].filter((k) => get(r, k) !== null).map((k) => `${k} ${get(r, k)}`).join(", ") || "–";
    const cells = (r) => [get(r, "type"), get(r, "layer") ?? "–", get(r, "site") + (get(r, "expert") === null ? "" : `[${get(r, "expert")}]`), place(r), get(r, "token") ?? "–", number(get(r, "value")), ratio(get(r, "ratio")),
      get(r, "low") === null ? "–" : `${number(get(r, "low"))} … ${number(get(r, "high"))}`, percent(get(r, "recurrence")), get(r, "q_value") === null ? "–" : get(r, "q_value") < 1e-12 ? "< 1e−12" : number(get(r, "q_value"), 2), get(r, "presets")];
    const texts = rows.map((r) => cells(r).join(" ").toLowerCase()), big = (x) => (x === null ? -Infinity : Number(x));
    const keys = [(r) => get(r, "type"), (r) => big(get(r, "layer")), (r) => get(r, "site"), (r) => big(get(r, "channel") ?? get(r, "row") ?? get(r, "column") ?? get(r, "head")), (r) => get(r, "token") ?? "",
      (r) => Math.abs(big(get(r, "value"))), (r) => big(get(r, "ratio")), (r) => big(get(r, "low")), (r) => big(get(r, "recurrence")), (r) => big(get(r, "q_value")), (r) => get(r, "presets")];
    const numeric = [5, 6, 8, 9], heads = $$("#table thead th"), more = $("#more"), input = (k) => $(`#f-${k}`);
    let sort = [-1, 1], limit = 50;
    function update() {
      const want = Object.fromEntries(["kind", "type", "layer", "preset", "text"].map((k) => [k, input(k).value]));
      const words = want.text.toLowerCase().split(/\s*,\s*/).filter(Boolean);
      let hits = rows.map((r, i) => i).filter((i) => (!want.kind || get(rows[i], "kind") === want.kind) && (!want.type || get(rows[i], "type") === want.type) && (want.layer === "" || String(get(rows[i], "layer")) === want.layer) &&
        (!want.preset || get(rows[i], "presets").split(" ").includes(want.preset)) && words.every((w) => texts[i].includes(w)));
      if (sort[0] >= 0) {
        const key = keys[sort[0]];
        hits.sort((a, b) => { const x = key(rows[a]), y = key(rows[b]); return (x < y ? -1 : x > y ? 1 : 0) * sort[1] || a - b; });
      }
      body.replaceChildren(...hits.slice(0, limit).map((i) => el("tr", null, ...cells(rows[i]).map((c, j) => el(j ? "td" : "th", j ? (numeric.includes(j) ? { class: "n" } : {}) : { scope: "row" }, el("bdi", null, String(c)))))));
      $("#f-count").textContent = hits.length === rows.length ? many(rows.length, "finding") : `${hits.length.toLocaleString("en-US")} of ${many(rows.length, "finding")}`;
      more.hidden = hits.length <= limit;
      heads.forEach((h, j) => h.setAttribute("aria-sort", j !== sort[0] ? "none" : sort[1] > 0 ? "ascending" : "descending"));
    }
    heads.forEach((h, j) => {
      const b = el("button", { type: "button" }, h.textContent);
      b.addEventListener("click", () => { sort = sort[0] === j ? [j, -sort[1]] : [j, numeric.includes(j) ? -1 : 1]; update(); });
      h.replaceChildren(b);
    });
    for (const k of ["kind", "type", "layer", "preset", "text"]) {
      if (given[k] !== undefined) input(k).value = given[k];
      input(k).addEventListener("input", () => { limit = 50; update(); });
    }
    if (given.sort !== undefined) sort = [Number(given.sort), -1];
    more.addEventListener("click", () => { limit += 200; update(); });
    update();
  }
})();
