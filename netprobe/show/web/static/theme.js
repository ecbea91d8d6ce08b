"use strict";
// Before anything is drawn: light or dark as chosen, else as the system has it.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("netprobe-theme"); } catch (_) { /* storage may be forbidden */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
