// The search as a whole: how it went, what mattered, what stayed dense, what it was run with.

function searchSection() {
  const parts = [growthPart(), importancePart('score'), proxyPart(), importancePart('size'), sensitivityPart(), harmPart()].filter(Boolean);
  if (!parts.length) return;
  const node = section('search', 'How the search went');
  node.append(el('div', { class: 'pair' }, parts));
}

function growthPart() {
  const found = data.growth;
  if (!found || found.values.length < 2) return null;
  const drawn = lineChart({
    label: () => 'Hypervolume of the front by trial', values: found.values, from: 1, xName: 'completed trials', yName: 'hypervolume',
    tell: (i) => [`after ${found.names[i]}`, `hypervolume ${found.values[i].toFixed(4)}`],
  });
  return el('div', {}, el('h3', {}, 'Hypervolume by trial'), drawn.node,
    el('p', { class: 'note' }, `The share of the plane that the front covers: 2.5 decades of parameters below the dense model, ${data.metric} from ${score(found.floor)} to ${score(found.ceiling)}. Where it is flat, more trials found nothing better.`));
}

const IMPORTANCE = {
  score: ['What made models good for their size', 'Trials are compared with others of their size, so that size itself counts for nothing.'],
  size: ['What made models small', 'Groups with many parameters weigh most.'],
};

function importancePart(kind) {
  const found = data.importances && data.importances[kind];
  const rows = Object.entries(found || {}).filter(([, v]) => isNumber(v)).sort((a, b) => b[1] - a[1]).slice(0, 10);
  if (!rows.length) return null;
  const [title, note] = IMPORTANCE[kind];
  const trials = kind === 'score' ? data.importances.compared : data.importances.trials;
  return el('div', {}, el('h3', {}, title),
    bars(rows.map(([name, v]) => ({ name: name.replace(/^(sparsity|drop)\//, ''), more: name.startsWith('sparsity/') ? 'width' : name.startsWith('drop/') ? 'dropped' : '', share: v, value: percent(v, 1) }))),
    el('p', { class: 'note' }, `${note} PED-ANOVA importances over ${whole(trials)} trials, the ten largest.`));
}

const PROXIES = { epoch0: 'the score before training', predicted: "the search's forecast" };

function proxyPart() {
  const trials = data.trials.filter((t) => !t.final && t.state === 'complete' && t.curve.length > 1 && isNumber(t.curve[0]) && isNumber(t.valid));
  if (trials.length < 4) return null;
  const said = Object.entries(data.proxies).map(([name, p]) => `${PROXIES[name] || name} ${isNumber(p.within_sizes) ? p.within_sizes.toFixed(2) : 'not known'} (${whole(p.binned)} trials in ${whole(p.bins)} ${p.bins === 1 ? 'size' : 'sizes'})`);
  const sizes = trials.map((t) => Math.log10(t.params));
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const drawn = chart(() => 'Final score over the score before training', (width) => {
    const { svg, xs, ys } = frame({
      width, height: 280, xName: `${data.metric} before training`, yName: `${data.metric} at the end`,
      x: (range) => linear(padded(trials.map((t) => t.curve[0])), range), y: (range) => linear(padded(trials.map((t) => t.valid)), range),
    });
    for (const t of trials) {
      const large = most > least ? (Math.log10(t.params) - least) / (most - least) : 1;
      svg.append(shape('circle', {
        cx: xs(t.curve[0]), cy: ys(t.valid), r: 2 + 4 * large, class: 'test',
        onpointermove: (event) => showTip(event, t.name, `${whole(t.params)} parameters`, `${score(t.curve[0])} before, ${score(t.valid)} after`), onpointerleave: hideTip,
      }));
    }
    return svg;
  });
  return el('div', {}, el('h3', {}, 'What was known before training'), drawn.node,
    el('p', { class: 'note' }, `Larger circles are larger models. ${said.length ? `Rank correlation with the final score within sizes: ${said.join('; ')}.` : ''}`));
}

function sensitivityPart() {
  const groups = data.groups.filter((g) => isNumber(g.sensitivity));
  if (groups.length < 2) return null;
  const values = groups.map((g) => g.sensitivity);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const rows = groups.map((g) => ({ name: g.name, share: most > least ? 0.04 + (0.96 * (g.sensitivity - least)) / (most - least) : 1, of: 1, value: g.sensitivity.toFixed(1) }));
  return el('div', {}, el('h3', {}, 'Sensitivity per group'), bars(rows, { many: rows.length > 16 }),
    el('p', { class: 'note' }, 'Logarithm of the mean Fisher score of a channel of the dense model: where it is high, a channel is missed more.'));
}

// A map of what each cut alone costs: the more, the darker.
function harmPart() {
  if (!data.harm) return null;
  const { criterion, shares, rows } = data.harm;
  const most = Math.max(...rows.flatMap((r) => r.lost).filter(isNumber), 1e-9);
  const head = shares.map((share) => [share ? `${Number((100 * share).toPrecision(3))}%` : 'dropped']);
  const drawn = table([['Group', 'text'], ...head], rows.map((r) => [[r.name.replace(/\.block$/, ''), 'text wrap'], ...r.lost.map((v) => [isNumber(v) ? v.toFixed(3) : ''])]));
  drawn.classList.add('heat');
  rows.forEach((r, i) => r.lost.forEach((v, j) => {
    const part = isNumber(v) ? Math.max(v, 0) / most : 0;
    drawn.querySelector('tbody').rows[i].cells[j + 1].style.background = `color-mix(in srgb, var(--orange) ${Math.round(60 * part)}%, transparent)`;
  }));
  return el('div', {}, el('h3', {}, 'What cutting one group alone costs'), drawn,
    el('p', { class: 'note' }, `${data.metric} lost on validation when the group keeps that share of its channels, cut by ${criterion}, with no training after it.`));
}

function frozenSection() {
  const node = section('frozen', 'What stayed dense, and why');
  const all = data.dense.params || 0;
  if (data.blocked.length) {
    const blocked = [...data.blocked].sort((a, b) => b.params - a.params);
    node.append(table([['Layer', 'text'], ['Parameters'], ['Share'], ['Why its own channels stay', 'text wrap']],
      blocked.map((b) => [[b.layer, 'text wrap'], [whole(b.params)], [percent(b.params, all)], [b.reason, 'text wrap']])));
    node.append(el('p', { class: 'note' }, 'Such a layer still gets smaller where its inputs are pruned.'));
  } else {
    node.append(el('p', {}, 'Nothing: every layer with channels could be pruned.'));
  }
  const failed = data.trials.filter((t) => t.state === 'failed' && t.cause);
  if (failed.length) {
    node.append(el('details', {}, el('summary', {}, `${whole(failed.length)} failed ${failed.length === 1 ? 'trial' : 'trials'}`),
      table([['Trial', 'text'], ['Cause', 'text wrap']], failed.map((t) => [[t.name, 'text'], [t.cause, 'text wrap']]))));
  }
  for (const m of data.rejected) {
    node.append(el('p', { class: 'bad' }, `${m.name} was left off the front, as its export did not answer as it did in memory: ${m.problems.join('; ')}`));
  }
}

function settingsSection() {
  const node = section('settings', 'To do it again');
  const listed = (title, entries) => {
    const rows = Object.entries(entries).filter(([, v]) => v !== null && v !== '' && v !== undefined);
    return rows.length ? el('div', {}, el('h3', {}, title), el('dl', {}, rows.map(([n, v]) => el('div', {}, el('dt', {}, n.replace(/_/g, ' ')), el('dd', {}, said(v, n)))))) : '';
  };
  node.append(el('div', { class: 'pair' },
    listed('Seed and versions', { seed: data.seed, ...data.versions }),
    listed('What was searched', data.settings.study),
    listed('Settings', data.settings.search),
    listed('Data, as digests', data.settings.data)));
}

const CHOICES = new Set(['batch_size', 'steps', 'reconstruct']);

function said(value, name) {
  if (Array.isArray(value) && CHOICES.has(name)) return value.join(' or ');
  if (Array.isArray(value)) return value.length === 2 && value.every(isNumber) ? `${value[0]} to ${value[1]}` : value.join(', ');
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
