// The front over all trials: hover to read, click or press Enter to choose.

function frontSection() {
  const trials = data.trials.filter((t) => !t.final && isNumber(t.params) && isNumber(t.valid));
  if (!trials.length) return;
  let near = false;
  const zoom = el('button', { type: 'button', 'aria-pressed': 'false' }, 'Top scores only');
  const node = section('front', 'The front', el('div', { class: 'tools' }, zoom));
  const drawn = chart(() => `${data.metric} of all trials over their parameters`, (width) => drawFront(width, trials, near));
  node.append(drawn.node, legend(trials));
  zoom.addEventListener('click', () => {
    near = !near;
    zoom.setAttribute('aria-pressed', String(near));
    drawn.redraw();
  });
  onPick(drawn.redraw);
}

// Scores that the axis spans: those of the front, or those near the best.
function scoresShown(trials, near) {
  const models = data.front.flatMap((m) => [m.valid, m.test]).filter(isNumber);
  const all = models.length ? models : trials.filter((t) => t.state === 'complete').map((t) => t.valid);
  const base = [...(all.length ? all : trials.map((t) => t.valid)), data.dense.valid].filter(isNumber);
  const best = base.reduce((a, b) => (goodness(b) > goodness(a) ? b : a));
  const worst = base.reduce((a, b) => (goodness(b) < goodness(a) ? b : a));
  const spread = Math.abs(best - worst) || Math.abs(best) * 0.1 || 1;
  const shown = near ? spread * 0.2 : spread;
  const ends = [goodness(best) + shown * 0.05, goodness(best) - shown * 1.08].map(goodness);
  return [Math.min(...ends), Math.max(...ends)];
}

function drawFront(width, trials, near) {
  const height = width < 600 ? 360 : 460;
  const sizes = [...trials.map((t) => t.params), ...data.baselines.map((m) => m.params), data.dense.params].filter(isNumber);
  const range = scoresShown(trials, near);
  const { svg, box, xs, ys } = frame({
    width, height, xName: 'parameters, log scale', yName: `${data.metric} on validation${data.higher ? '' : ', lower is better'}`,
    x: (ends) => logarithmic([Math.max(Math.min(...sizes), 1) * 0.9, Math.max(...sizes) * 1.15], ends),
    y: (ends) => linear(range, ends),
  });
  const inside = (value) => isNumber(value) && value >= range[0] && value <= range[1];
  drawDense(svg, box, xs, ys, inside);
  const places = drawBaselines(svg, xs, ys, inside);
  for (const t of trials) {
    if (!inside(t.valid) || onFront.has(t.name)) continue;
    const [x, y] = [xs(t.params), ys(t.valid)];
    places.push([x, y, t]);
    if (t.state !== 'complete') svg.append(shape('path', { class: 'stopped', d: cross(x, y, 3) }));
    else if (t.uniform) svg.append(shape('path', { class: 'uniform', d: diamond(x, y) }));
    else svg.append(shape('circle', { class: 'trial', cx: x, cy: y, r: trials.length > 300 ? 2.4 : 3.2 }));
  }
  const hit = shape('rect', { class: 'hit', x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top });
  svg.append(hit);
  places.push(...drawModels(svg, xs, ys, inside));
  const nearest = (event) => {
    const area = svg.getBoundingClientRect();
    const [px, py] = [event.clientX - area.left, event.clientY - area.top];
    let found = null;
    let least = 22 ** 2;
    for (const place of places) {
      const far = (place[0] - px) ** 2 + (place[1] - py) ** 2;
      if (far < least) { least = far; found = place; }
    }
    return found;
  };
  svg.addEventListener('pointermove', (event) => {
    const place = nearest(event);
    if (place) showTip(event, place[2].name, ...describe(place[2])); else hideTip();
  });
  svg.addEventListener('pointerleave', hideTip);
  svg.addEventListener('click', (event) => {
    const place = nearest(event);
    if (place) pick(place[2].name);
  });
  if (inside(data.dense.valid)) {
    const below = ys(data.dense.valid) + (data.higher ? 20 : -10);
    svg.append(shape('text', { class: 'strong halo', x: box.right, y: below, 'text-anchor': 'end' }, `dense ${score(data.dense.valid)}`));
  }
  const hidden = trials.filter((t) => !inside(t.valid)).length;
  if (hidden) {
    svg.append(shape('text', { class: 'halo', x: box.right, y: box.bottom - 8, 'text-anchor': 'end' },
      `${whole(hidden)} ${hidden === 1 ? 'trial scores' : 'trials score'} below this axis`));
  }
  svg.setAttribute('role', 'group');
  return svg;
}

function drawDense(svg, box, xs, ys, inside) {
  const { params, valid } = data.dense;
  if (!inside(valid)) return;
  const at = ys(valid);
  if (data.point) {
    const low = Math.min(Math.max(ys(goodness(goodness(valid) - data.point)), box.top), box.bottom);
    svg.append(shape('rect', { class: 'band', x: box.left, width: box.right - box.left, y: Math.min(at, low), height: Math.abs(low - at) }));
  }
  svg.append(shape('line', { class: 'dashed', x1: box.left, x2: box.right, y1: at, y2: at }));
  svg.append(shape('rect', { class: 'dense', x: xs(params) - 5, y: at - 5, width: 10, height: 10 }));
}

// Models that others pruned by one share everywhere, made to compare with.
function drawBaselines(svg, xs, ys, inside) {
  const found = data.baselines.filter((m) => isNumber(m.params) && inside(m.valid));
  for (const m of found) svg.append(shape('path', { class: 'uniform', d: diamond(xs(m.params), ys(m.valid)) }));
  return found.map((m) => [xs(m.params), ys(m.valid), { ...m, name: m.name || 'pruned uniformly', state: 'complete' }]);
}

function drawModels(svg, xs, ys, inside) {
  const models = data.front.filter((m) => inside(m.valid));
  const stairs = [];
  let best = null;
  for (const m of models) {
    if (best !== null && goodness(m.valid) <= goodness(best)) continue;
    if (best !== null) stairs.push([xs(m.params), ys(best)]);
    stairs.push([xs(m.params), ys(m.valid)]);
    best = m.valid;
  }
  svg.append(shape('path', { class: 'stairs', d: path(stairs) }));
  for (const m of models) if (inside(m.test)) svg.append(shape('circle', { class: 'test', cx: xs(m.params), cy: ys(m.test), r: 3.5 }));
  const places = [];
  const named = new Set(data.cards.map((c) => c.name));
  const chosen = models.some((m) => m.name === picked) ? picked : models.length ? models[0].name : '';
  models.forEach((m, i) => {
    const [x, y] = [xs(m.params), ys(m.valid)];
    const trial = byName.get(m.name) || { ...m, state: 'complete' };
    places.push([x, y, trial]);
    if (m.name === picked) svg.append(shape('circle', { class: 'ring', cx: x, cy: y, r: 10 }));
    svg.append(shape('circle', {
      class: 'front', cx: x, cy: y, r: models.length > 30 ? 4.5 : 6, role: 'button', tabindex: m.name === chosen ? 0 : -1,
      'aria-label': `${m.name}: ${describe(trial).join(', ')}`, 'data-name': m.name,
      onkeydown: (event) => frontKey(event, models, i),
    }));
  });
  const taken = models.map((m) => around(xs(m.params), ys(m.valid), m.name === picked ? 11 : 7));
  const labelled = models.filter((m) => named.has(m.name) || m.name === picked);
  for (const m of labelled.sort((a, b) => (b.name === picked) - (a.name === picked))) nameModel(svg, m.name, xs(m.params), ys(m.valid), taken);
  const other = byName.get(picked);
  if (other && !onFront.has(picked) && isNumber(other.params) && inside(other.valid)) {
    svg.append(shape('circle', { class: 'ring', cx: xs(other.params), cy: ys(other.valid), r: 7 }));
  }
  return places;
}

const around = (x, y, r) => ({ left: x - r, right: x + r, top: y - r, bottom: y + r });

// Write a model's name beside its point, where it covers no other point or name; else leave it out.
function nameModel(svg, name, x, y, taken) {
  const wide = 8 * name.length;
  const places = [[-12, -9, 'end'], [12, 19, 'start'], [-13, 5, 'end'], [13, 5, 'start'], [0, -15, 'middle'], [0, 24, 'middle']];
  for (const [dx, dy, anchor] of places) {
    const left = x + dx - (anchor === 'end' ? wide : anchor === 'middle' ? wide / 2 : 0);
    const box = { left, right: left + wide, top: y + dy - 11, bottom: y + dy + 3 };
    const apart = (b) => b.right < box.left || b.left > box.right || b.bottom < box.top || b.top > box.bottom;
    if (box.left < 50 || !taken.every(apart)) continue;
    taken.push(box);
    svg.append(shape('text', { class: 'strong halo', x: x + dx, y: y + dy, 'text-anchor': anchor }, name));
    return;
  }
}

// Arrows go along the front, Enter and space choose.
function frontKey(event, models, i) {
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  const chosen = step ? models[i + step] : event.key === 'Enter' || event.key === ' ' ? models[i] : null;
  if (!chosen) return;
  event.preventDefault();
  const svg = event.currentTarget.ownerSVGElement;
  const home = svg.parentNode;
  pick(chosen.name);
  for (const node of home.querySelectorAll('.front')) if (node.dataset.name === chosen.name) node.focus();
}

const cross = (x, y, r) => `M${x - r},${y - r}L${x + r},${y + r}M${x - r},${y + r}L${x + r},${y - r}`;
const diamond = (x, y) => `M${x},${y - 6}L${x + 6},${y}L${x},${y + 6}L${x - 6},${y}Z`;

function legend(trials) {
  const marks = [];
  if (data.front.length) marks.push([shape('circle', { class: 'front', r: 5 }), 'on the front, validation']);
  if (data.front.some((m) => isNumber(m.test))) marks.push([shape('circle', { class: 'test', r: 3.5 }), 'the same on test']);
  marks.push([shape('circle', { class: 'trial', r: 3.2 }), 'other trials']);
  if (data.baselines.length || trials.some((t) => t.uniform)) marks.push([shape('path', { class: 'uniform', d: diamond(0, 0) }), 'uniformly pruned']);
  if (trials.some((t) => t.state !== 'complete')) marks.push([shape('path', { class: 'stopped', d: cross(0, 0, 3) }), 'stopped early']);
  if (isNumber(data.dense.valid)) marks.push([shape('rect', { class: 'dense', x: -5, y: -5, width: 10, height: 10 }), 'the dense model']);
  if (data.point) marks.push([shape('rect', { class: 'band', x: -7, y: -6, width: 14, height: 12 }), `within ${pointWords()} of it`]);
  return el('ul', { class: 'legend' }, marks.map(([mark, text]) => el('li', {}, shape('svg', { width: 14, height: 14, viewBox: '-7 -7 14 14', 'aria-hidden': 'true' }, mark), text)));
}

function pointWords() {
  return data.point === 0.01 ? '1 point' : `1% (${score(data.point)})`;
}
