// Before anything is painted: what was chosen here before, else what the system asks for.
(() => {
  let kept = null;
  try { kept = localStorage.getItem('autoprune-theme'); } catch { /* files may have no storage */ }
  const dark = kept ? kept === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();
