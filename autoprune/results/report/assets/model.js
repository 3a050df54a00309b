// The chosen model: what it is, how it was made, how to load it.

function modelSection() {
  if (!data.trials.length) return;
  const list = el('select', { id: 'pick', 'aria-label': 'Model to show', onchange: (event) => pick(event.target.value) });
  const group = (label, trials) => trials.length && list.append(el('optgroup', { label }, trials.map((t) =>
    el('option', { value: t.name }, `${t.name}, ${whole(t.params)} parameters, ${score(shownScore(t))}`))));
  group('On the front', data.front.map((m) => byName.get(m.name)).filter(Boolean));
  group('Other trials', data.trials.filter((t) => !onFront.has(t.name)));
  const node = section('model', 'Model', el('div', { class: 'tools' }, list));
  const body = el('div', { class: 'stack' });
  node.append(body);
  onPick((name) => {
    list.value = name;
    document.getElementById('model-title').textContent = `Model ${name}`;
    body.replaceChildren(...modelParts(byName.get(name)));
  });
}

const shownScore = (trial) => (onFront.get(trial.name) || trial).valid;

function modelParts(trial) {
  const model = onFront.get(trial.name);
  const weights = model ? byName.get(model.weights) || trial : trial;
  const widths = widthsOf(weights);
  const training = trainingOf(weights);
  return [
    strip(trial, model),
    el('div', {}, el('h3', {}, 'How it was made'), madeOf(trial, weights)),
    widths || training ? el('div', { class: 'pair' }, widths || '', training || '') : '',
    el('div', {}, el('h3', {}, 'How to load and serve it'), loading(trial, model)),
    model && model.latencies.length ? el('div', {}, el('h3', {}, 'Latency'), latencies(model)) : '',
  ].filter(Boolean);
}

function strip(trial, model) {
  const dense = data.dense;
  const lost = isNumber(dense.valid) && isNumber(shownScore(trial)) ? shownScore(trial) - dense.valid : null;
  const rows = [
    ['Parameters', whole(trial.params), `${percent(trial.params, dense.params)} of dense`],
    ['Multiply-adds', short(trial.macs), `${percent(trial.macs, dense.macs)} of dense`],
    [`Validation ${data.metric}`, score(shownScore(trial)), lost === null ? '' : `${lost >= 0 ? '+' : '−'}${score(Math.abs(lost))} to dense`],
  ];
  if (model && isNumber(model.test)) rows.push([`Test ${data.metric}`, score(model.test), `dense ${score(dense.test)}`]);
  if (model) rows.push(['Size on disk', bytes(model.size_bytes), `${percent(model.size_bytes, dense.size_bytes)} of dense`]);
  if (model && isNumber(model.memory_bytes)) rows.push(['Activations', bytes(model.memory_bytes), 'of one sample, at most']);
  const latency = model && isNumber(model.latency_ms) ? model.latency_ms : trial.latency;
  if (isNumber(latency)) rows.push(['Latency', milliseconds(latency), isNumber(dense.latency_ms) ? `dense ${milliseconds(dense.latency_ms)}` : '']);
  if (!model) rows.push(['State', trial.state, trial.cause || 'not on the front']);
  return el('dl', { class: 'strip' }, rows.map(([name, value, more]) => el('div', {}, el('dt', {}, name), el('dd', {}, value, more ? el('small', {}, more) : ''))));
}

// Its ancestors, the dense model first.
function lineageOf(trial) {
  const found = [];
  const seen = new Set();
  for (let t = trial; t && !seen.has(t.name); t = byName.get(t.parent)) {
    seen.add(t.name);
    found.unshift(t);
  }
  return found;
}

const seedOf = (trial) => (isNumber(trial.seed) ? ` Seed ${trial.seed}.` : '');

function madeOf(trial, weights) {
  const chain = lineageOf(weights);
  const epochs = chain.reduce((sum, t) => sum + (t.epochs || 0), 0);
  const steps = el('ol', {}, chain.map((t) => el('li', {}, el('strong', {}, `${t.name}: `), t.recipe)));
  const more = weights.name === trial.name ? '' : el('p', {}, `${trial.name} on the front has the weights of ${weights.name}: ${weights.recipe}${seedOf(weights)}`);
  return el('div', { class: 'made' },
    more,
    el('p', {}, `${trial.name}: ${trial.recipe}${seedOf(trial)}`),
    el('p', { class: 'note' }, `Its lineage, from the dense model: ${whole(chain.length)} ${chain.length === 1 ? 'step' : 'steps'}, ${whole(epochs)} epochs in all. What a step has trained, the next one begins with.`),
    el('ol', { class: 'chain' },
      el('li', {}, el('span', {}, 'dense ', el('small', {}, short(data.dense.params)))),
      chain.map((t) => el('li', {}, el('button', { type: 'button', 'aria-current': t.name === picked ? 'true' : null, onclick: () => pick(t.name) }, `${t.name} `, el('small', {}, short(t.params)))))),
    chain.length > 1 ? el('details', {}, el('summary', {}, 'Every step in words'), steps) : '');
}

function widthsOf(trial) {
  if (!trial.widths || !data.groups.length) return null;
  const rows = data.groups.map((g, i) => {
    const width = trial.widths[i];
    if (!isNumber(width)) return null;
    if (g.block) return { name: g.name.replace(/\.block$/, ''), more: 'block', share: width, of: 1, soft: true, value: width ? 'kept' : 'dropped' };
    return { name: g.name, share: width / g.channels, of: 1, value: `${whole(width)} / ${whole(g.channels)}` };
  }).filter(Boolean);
  return el('div', {}, el('h3', {}, 'Channels kept per group'), bars(rows, { many: rows.length > 16 }));
}

function trainingOf(trial) {
  const parts = [];
  if (trial.curve.length > 1) {
    parts.push(lineChart({
      label: () => `${data.metric} of ${trial.name} by epoch`, values: trial.curve, xName: 'epoch', yName: `${data.metric} on validation`,
      reference: isNumber(data.dense.valid) ? { value: data.dense.valid, name: 'dense' } : null,
      tell: (i) => [i ? `after epoch ${i}` : 'after the cut, before training', `${data.metric} ${score(trial.curve[i])}`],
    }).node);
  }
  if (trial.losses.length > 1) {
    parts.push(lineChart({
      label: () => `Training loss of ${trial.name} by epoch`, values: trial.losses, from: 1, xName: 'epoch', yName: 'training loss', kind: 'loss', height: 200,
      tell: (i) => [`epoch ${i + 1}`, `loss ${Number(trial.losses[i].toPrecision(4))}`],
    }).node);
  }
  return parts.length ? el('div', {}, el('h3', {}, `Training of ${trial.name}`), ...parts) : null;
}

function loading(trial, model) {
  if (!model) {
    return el('p', { class: 'note' }, trial.state === 'complete'
      ? `Only models on the front are exported. ${trial.name} is beaten by one of them.`
      : `${trial.name} was not completed (${trial.state}), so there is nothing to load.`);
  }
  const problems = model.problems.length ? el('p', { class: 'bad' }, `Not exported: ${model.problems.join('; ')}`) : '';
  return el('div', {}, problems, el('div', { class: 'codes' }, model.commands.map((c) => el('article', {}, el('h4', {}, c.title), el('p', {}, c.note), codeBlock(c.code)))));
}

function codeBlock(text) {
  const button = el('button', { type: 'button' }, 'Copy');
  const pre = el('pre', { tabindex: 0 }, el('code', {}, text));
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(pre);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
  return el('div', { class: 'code' }, pre, button);
}

function latencies(model) {
  const same = (a, b) => ['engine', 'batch_size', 'threads', 'device', 'when'].every((k) => a[k] === b[k]);
  const noisy = model.latencies.some((l) => l.spread > l.seconds);
  const rows = model.latencies.map((l) => {
    const dense = (data.dense.latencies || []).find((d) => same(d, l));
    return [
      [l.engine, 'text'], [l.when, 'text side'], [`${whole(l.batch_size)}`], [`${whole(l.threads)}`, 'side extra'], [l.device || '', 'text side extra'],
      [milliseconds(1e3 * l.seconds)], [milliseconds(1e3 * l.spread), 'side'],
      [dense ? milliseconds(1e3 * dense.seconds) : '–'], [dense ? `${(dense.seconds / l.seconds).toFixed(1)}×` : '–'],
    ];
  });
  return el('div', {}, table([['Engine', 'text'], ['Measured', 'text side'], ['Batch'], ['Threads', 'side extra'], ['Device', 'text side extra'], ['Median'], ['Spread', 'side'], ['Dense'], ['Faster']], rows),
    el('p', { class: 'note' }, 'Spread is the interquartile range. Dense and pruned models are measured in turns, in one process. The command autoprune bench measures anew.',
      noisy ? ' Where the spread is larger than the median, the machine was busy with something else: do that.' : ''));
}

function table(head, rows) {
  return el('div', { class: 'wide' }, el('table', {},
    el('thead', {}, el('tr', {}, head.map(([name, kind]) => el('th', { class: kind, scope: 'col' }, name)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, row.map(([value, kind]) => el('td', { class: kind }, value)))))));
}
