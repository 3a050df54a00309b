// The page, from top to bottom.
const toggle = document.getElementById('theme');

function nameTheme() {
  toggle.textContent = document.documentElement.dataset.theme === 'dark' ? 'Light' : 'Dark';
}

toggle.addEventListener('click', () => {
  const theme = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem('autoprune-theme', theme); } catch { /* files may have no storage */ }
  nameTheme();
});
nameTheme();

frontSection();
modelSection();
trialsSection();
searchSection();
frozenSection();
settingsSection();

for (const button of document.querySelectorAll('[data-pick]')) {
  button.addEventListener('click', () => pick(button.dataset.pick, { scroll: true }));
}
const first = data.cards.length ? data.cards[0].name : (data.trials.find((t) => t.state === 'complete') || data.trials[0] || {}).name;
if (first) pick(first);
document.getElementById('footer').append(`Written on ${data.written} from ${data.out}. This page is one file and asks the network for nothing.`);
document.documentElement.dataset.ready = 'true';
