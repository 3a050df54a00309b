// All trials in a table: sorted by a click on a column, filtered by text, state and front.
const PAGE = 25;
const COLUMNS = [
  { name: 'Trial', kind: 'text', of: (t) => t.name },
  { name: 'State', kind: 'text', of: (t) => t.state },
  { name: 'Front', kind: 'text side', of: (t) => (onFront.has(t.name) ? 1 : 0), show: (t) => (onFront.has(t.name) ? el('span', { class: 'star' }, '● front') : '') },
  { name: 'Parameters', of: (t) => t.params, show: (t) => whole(t.params) },
  { name: 'Of dense', kind: 'side', of: (t) => t.params, show: (t) => percent(t.params, data.dense.params) },
  { name: 'Validation', of: (t) => shownScore(t), show: (t) => score(shownScore(t)) },
  { name: 'Test', kind: 'side', of: (t) => (onFront.get(t.name) || {}).test, show: (t) => (onFront.has(t.name) ? score(onFront.get(t.name).test) : '') },
  { name: 'Multiply-adds', kind: 'side extra', of: (t) => t.macs, show: (t) => short(t.macs) },
  { name: 'Epochs', kind: 'side extra', of: (t) => t.epochs, show: (t) => whole(t.epochs) },
  { name: 'Criterion', kind: 'text side', of: (t) => t.criterion },
  { name: 'Parent', kind: 'text side extra', of: (t) => t.parent },
];

function trialsSection() {
  if (!data.trials.length) return;
  const asked = { text: '', state: '', front: false, column: 0, down: false, all: false };
  const node = section('trials', 'All trials');
  const states = [...new Set(data.trials.map((t) => t.state))];
  const count = el('span', { class: 'count', role: 'status' });
  const heads = COLUMNS.map((c, i) => el('th', { class: c.kind, scope: 'col' }, el('button', {
    type: 'button',
    onclick: () => {
      asked.down = asked.column === i ? !asked.down : c.kind === undefined && c.name !== 'Parameters';
      asked.column = i;
      show();
    },
  }, c.name)));
  const body = el('tbody');
  const more = el('button', { type: 'button', class: 'more', onclick: () => { asked.all = true; show(); } });
  const show = () => fillTable({ asked, heads, body, count, more });
  node.append(
    el('div', { class: 'tools' },
      el('input', { type: 'search', placeholder: 'Filter by name, criterion, parent …', 'aria-label': 'Filter trials by text', oninput: (e) => { asked.text = e.target.value; show(); } }),
      el('label', {}, 'State', el('select', { 'aria-label': 'Filter trials by state', onchange: (e) => { asked.state = e.target.value; show(); } },
        el('option', { value: '' }, 'any'), states.map((s) => el('option', { value: s }, s)))),
      el('label', {}, el('input', { type: 'checkbox', 'aria-label': 'Only trials on the front', onchange: (e) => { asked.front = e.target.checked; show(); } }), 'On the front'),
      count),
    el('div', { class: 'wide' }, el('table', {}, el('thead', {}, el('tr', {}, heads)), body)),
    more);
  onPick(() => markRow(body));
  show();
}

function fits(trial, asked) {
  if (asked.state && trial.state !== asked.state) return false;
  if (asked.front && !onFront.has(trial.name)) return false;
  const words = asked.text.toLowerCase().split(/\s+/).filter(Boolean);
  const text = [trial.name, trial.state, trial.criterion, trial.parent, trial.sparsify, trial.cause].join(' ').toLowerCase();
  return words.every((word) => text.includes(word));
}

function fillTable({ asked, heads, body, count, more }) {
  const column = COLUMNS[asked.column];
  const sign = asked.down ? -1 : 1;
  const rows = data.trials.filter((t) => fits(t, asked)).sort((a, b) => sign * compare(column.of(a), column.of(b), sign));
  const shown = asked.all ? rows : rows.slice(0, PAGE);
  heads.forEach((th, i) => th.setAttribute('aria-sort', i === asked.column ? (asked.down ? 'descending' : 'ascending') : 'none'));
  body.replaceChildren(...shown.map(trialRow));
  if (!rows.length) body.append(el('tr', {}, el('td', { class: 'text', colspan: COLUMNS.length }, 'No trial fits. Clear the filters to see all.')));
  count.textContent = `${whole(rows.length)} of ${whole(data.trials.length)}`;
  more.hidden = shown.length === rows.length;
  more.textContent = `Show all ${whole(rows.length)}`;
  markRow(body);
}

// What is not known comes last, whichever way it is sorted.
function compare(a, b, sign) {
  const [knownA, knownB] = [a !== null && a !== undefined, b !== null && b !== undefined];
  if (!knownA || !knownB) return knownA === knownB ? 0 : sign * (knownA ? -1 : 1);
  return typeof a === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true });
}

function trialRow(trial) {
  const cells = COLUMNS.map((c, i) => {
    const value = c.show ? c.show(trial) : c.of(trial);
    return el('td', { class: c.kind }, i ? value : el('button', { type: 'button' }, value));
  });
  return el('tr', { class: onFront.has(trial.name) ? 'pickable best' : 'pickable', 'data-name': trial.name, title: trial.cause || null, onclick: () => pick(trial.name, { scroll: true }) }, cells);
}

function markRow(body) {
  for (const row of body.rows) row.setAttribute('aria-selected', String(row.dataset.name === picked));
}
