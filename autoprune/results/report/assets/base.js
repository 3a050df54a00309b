// What all parts of the page use: the data, elements, numbers as people read them.
const data = JSON.parse(document.getElementById('data').textContent);
const byName = new Map(data.trials.map((t) => [t.name, t]));
const onFront = new Map(data.front.map((m) => [m.name, m]));
const SVG = 'http://www.w3.org/2000/svg';

// Names come from models and studies of others: they only ever become text, never markup.
function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ''));
  return node;
}

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const grouped = new Intl.NumberFormat('en-US');

function whole(value) {
  return isNumber(value) ? grouped.format(Math.round(value)) : '–';
}

function score(value) {
  if (!isNumber(value)) return '–';
  return Math.abs(value) <= 1 ? value.toFixed(4) : String(Number(value.toPrecision(5)));
}

function percent(part, all) {
  if (!isNumber(part) || !all) return '–';
  const share = (100 * part) / all;
  return `${share >= 10 ? share.toFixed(0) : share.toPrecision(2)}%`;
}

function short(value) {
  if (!isNumber(value)) return '–';
  for (const [limit, unit] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (Math.abs(value) >= limit) return `${Number((value / limit).toPrecision(3))}${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

function bytes(value) {
  return isNumber(value) ? `${short(value).replace(/([GMk])$/, ' $1')}B`.replace(/^(\d+)B$/, '$1 B') : '–';
}

function milliseconds(value) {
  return isNumber(value) ? `${Number(value.toPrecision(3))} ms` : '–';
}

const goodness = (value) => (data.higher ? value : -value);

// A section of the page, with its heading and what stands beside that.
function section(id, title, ...beside) {
  const heading = el('h2', { id: `${id}-title` }, title);
  const top = beside.length ? el('div', { class: 'heading' }, heading, ...beside) : heading;
  const node = el('section', { id, 'aria-labelledby': `${id}-title` }, top);
  document.getElementById('rest').append(node);
  return node;
}

// --- which model is shown: every part may ask, and is told --------------------------------------

const listeners = [];
let picked = null;

function onPick(listener) { listeners.push(listener); }

function pick(name, { scroll = false } = {}) {
  if (!byName.has(name)) return;
  picked = name;
  for (const listener of listeners) listener(name);
  if (scroll) document.getElementById('model').scrollIntoView();
}

// --- the tip that follows the pointer -----------------------------------------------------------

const tip = document.getElementById('tip');

function showTip(event, title, ...lines) {
  tip.replaceChildren(el('strong', {}, title), ...lines.map((line) => el('div', {}, line)));
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = Math.max(8, Math.min(event.pageX + 14, room));
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(event.pageY - tip.offsetHeight - 14, scrollY + 4)}px`;
}

function hideTip() { tip.hidden = true; }

function describe(trial) {
  const model = onFront.get(trial.name);
  return [
    `${whole(trial.params)} parameters, ${percent(trial.params, data.dense.params)} of dense`,
    `${data.metric} ${score(model ? model.valid : trial.valid)}${trial.state === 'complete' ? '' : `, ${trial.state}`}`,
    model && isNumber(model.test) ? `test ${score(model.test)}` : '',
  ].filter(Boolean);
}
