(() => {
  "use strict";
  const root = document.documentElement, tip = document.getElementById("tip");
  root.classList.add("on");
  const given = new URLSearchParams(location.hash.slice(1));
  for (const theme of ["dark", "light"]) if (given.has(theme)) root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  // Text only ever enters the page as text.
  document.addEventListener("pointermove", (e) => {
    const t = e.target.closest && e.target.closest("[data-tip]");
    tip.hidden = !t;
    if (!t) return;
    tip.textContent = t.dataset.tip;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(e.clientX + 12, innerWidth - box.width - 6)) + "px";
    tip.style.top = (e.clientY - box.height - 12 > 4 ? e.clientY - box.height - 12 : e.clientY + 16) + "px";
  });
})();
