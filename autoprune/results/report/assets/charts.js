// Axes and curves, drawn for the width that there is and drawn again when it changes.

function chart(label, draw) {
  const node = el('div', { class: 'chart' });
  let width = 0;
  const redraw = () => {
    if (!width) return;
    const svg = draw(width);
    svg.setAttribute('role', svg.getAttribute('role') || 'img');
    svg.setAttribute('aria-label', label());
    node.replaceChildren(svg);
  };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now !== width) { width = now; redraw(); }
  }).observe(node);
  return { node, redraw };
}

function linear([low, high], [from, to], { least = 0 } = {}) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  scale.ticks = (count) => {
    const rough = Math.max(span / count, least);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const first = Math.ceil(low / step - 1e-9);
    const found = [];
    for (let i = first; i * step <= high + 1e-9 * span; i += 1) found.push(i * step);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) + (step / power === 2.5 ? 1 : 0);
    scale.format = (value) => (Math.abs(value) >= 1e4 ? short(value) : value.toFixed(Math.min(digits, 6)));
    return found;
  };
  return scale;
}

function logarithmic([low, high], [from, to]) {
  const inner = linear([Math.log10(low), Math.log10(high)], [from, to]);
  const scale = (value) => inner(Math.log10(Math.max(value, 1e-12)));
  scale.ticks = (count) => {
    const decades = Math.log10(high / low);
    const steps = decades * 3 <= count ? [1, 2, 5] : decades * 2 <= count ? [1, 3] : [1];
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p += 1) {
      for (const m of steps) {
        const value = m * 10 ** p;
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    return found;
  };
  scale.format = short;
  return scale;
}

// The frame of a chart: where it is drawn, its grid, ticks and the names of its axes.
function frame({ width, height, x, y, xName, yName, left = 52 }) {
  const box = { left, right: width - 14, top: 30, bottom: height - 42 };
  const xs = x([box.left + 8, box.right - 8]);
  const ys = y([box.bottom - 6, box.top + 6]);
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, height });
  for (const value of ys.ticks(Math.max(4, Math.floor((box.bottom - box.top) / 55)))) {
    const at = ys(value);
    svg.append(shape('line', { class: 'grid', x1: box.left, x2: box.right, y1: at, y2: at }));
    svg.append(shape('text', { x: box.left - 8, y: at + 4, 'text-anchor': 'end' }, ys.format(value)));
  }
  for (const value of xs.ticks(Math.max(3, Math.floor((box.right - box.left) / 70)))) {
    const at = xs(value);
    svg.append(shape('line', { class: 'axis', x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }));
    svg.append(shape('text', { x: at, y: box.bottom + 18, 'text-anchor': 'middle' }, xs.format(value)));
  }
  svg.append(shape('line', { class: 'axis', x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  svg.append(shape('text', { class: 'strong', x: 0, y: 14 }, yName));
  svg.append(shape('text', { class: 'strong', x: box.right, y: height - 4, 'text-anchor': 'end' }, xName));
  return { svg, box, xs, ys };
}

function path(points) {
  return points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)},${y.toFixed(1)}`).join('');
}

function padded(values, share = 0.06) {
  const known = values.filter(isNumber);
  const low = Math.min(...known);
  const high = Math.max(...known);
  const pad = (high - low || Math.abs(high) || 1) * share;
  return [low - pad, high + pad];
}

// Values by epoch or by trial: one line, and what the pointer is on.
function lineChart({ label, values, from = 0, xName, yName, reference = null, kind = '', tell, height = 240 }) {
  return chart(label, (width) => {
    const known = reference ? [...values, reference.value] : values;
    const last = Math.max(from + values.length - 1, from + 1);
    const { svg, box, xs, ys } = frame({
      width, height, xName, yName,
      x: (range) => linear([from, last], range, { least: 1 }),
      y: (range) => linear(padded(known), range),
    });
    if (reference) {
      const at = ys(reference.value);
      svg.append(shape('line', { class: 'dashed', x1: box.left, x2: box.right, y1: at, y2: at }));
      svg.append(shape('text', { class: 'halo', x: box.right, y: at - 6, 'text-anchor': 'end' }, reference.name));
    }
    const points = values.map((v, i) => [xs(from + i), ys(v), i]).filter(([, , i]) => isNumber(values[i]));
    svg.append(shape('path', { class: `curve ${kind}`, d: path(points) }));
    if (points.length < 2) for (const [x, y] of points) svg.append(shape('circle', { class: 'front', cx: x, cy: y, r: 4 }));
    const mark = shape('circle', { class: 'ring', r: 4, visibility: 'hidden' });
    svg.append(mark);
    svg.append(shape('rect', {
      class: 'hit', x: box.left, y: box.top, width: Math.max(box.right - box.left, 0), height: box.bottom - box.top,
      onpointermove: (event) => {
        const at = event.clientX - svg.getBoundingClientRect().left;
        const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a), points[0]);
        if (!near) return;
        filled(mark, { cx: near[0], cy: near[1], visibility: 'visible' }, []);
        showTip(event, ...tell(near[2]));
      },
      onpointerleave: () => { mark.setAttribute('visibility', 'hidden'); hideTip(); },
    }));
    return svg;
  });
}

function bars(rows, { many = false, soft = false } = {}) {
  const most = Math.max(...rows.map((r) => r.share), 1e-12);
  const node = el('div', { class: many ? 'bars many' : 'bars' });
  for (const row of rows) {
    const fill = el('i', soft || row.soft ? { class: 'soft' } : {});
    fill.style.width = `${(100 * row.share) / (row.of || most)}%`;
    node.append(
      el('div', { class: 'label' }, row.name, row.more ? el('small', {}, ` ${row.more}`) : ''),
      el('div', { class: 'bar' }, fill),
      el('div', { class: 'value' }, row.value),
    );
  }
  return node;
}
