"use strict";
(() => {
  const text = id => document.getElementById(id).textContent;
  const night = JSON.parse(text("night"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll(".chart")];
  const PRINTED = 680;
  let printing = false;

  const put = (target, path, value) => {
    const names = path.split(".");
    const last = names.pop();
    for (const name of names) target = target[name] ??= {};
    target[last] = value;
  };

  const specOf = box => {
    let json = text(box.id + "-spec");
    if (dark.matches && !printing) for (const [day, colour] of Object.entries(night)) json = json.replaceAll(day, colour);
    return JSON.parse(json);
  };

  const draw = box => {
    const width = printing ? PRINTED : box.clientWidth;
    if (!width) return;
    const spec = specOf(box);
    const narrow = width < spec.wide_from;
    Object.assign(box.dataset, { narrow, from: spec.wide_from });
    if (narrow) {
      for (const [path, value] of Object.entries(spec.narrow)) put(path.startsWith("data.") ? spec : spec.layout, path, value);
    }
    if (printing) Object.assign(spec.layout, { width: PRINTED, autosize: false });
    Plotly.react(box, spec.data, spec.layout, spec.config);
    box.dataset.drawn = width;
  };

  const fit = entries => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (printing || !width || Number(target.dataset.drawn) === width) continue;
      const kept = target.dataset.drawn && target.dataset.narrow === String(width < Number(target.dataset.from));
      target.dataset.drawn = width;
      if (kept) Plotly.Plots.resize(target);
      else draw(target);
    }
  };
  // Drawn in the next frame: a chart that sets its own height must not do so while sizes are being observed.
  const watch = new ResizeObserver(entries => requestAnimationFrame(() => fit(entries)));
  for (const box of boxes) {
    draw(box);
    watch.observe(box);
  }
  dark.addEventListener("change", () => boxes.forEach(draw));

  let closed = [];
  addEventListener("beforeprint", () => {
    printing = true;
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
    boxes.forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const details of closed) details.open = false;
    boxes.forEach(draw);
  });
})();
