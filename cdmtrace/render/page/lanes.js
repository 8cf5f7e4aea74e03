// What plotly.js is to draw: a lane for each VMA, and how much happened when above them.
"use strict";

const lanes = (() => {
  const HEIGHT = 116; // pixels of a lane
  const ABOVE = 96; // of the figure of what happened when
  const LOST = 10; // of the bar of what was lost, at its top
  const AXIS = 44; // of the time axis between both
  // Where things are in a lane, as parts of its height: its middle and how high it is.
  const FOUND = -0.27, MARKS = -0.14, RUN = [-0.14, 0.05], TAG = [-0.02, 0.09];
  const POLICY = [0.11, 0.17], PAGES = [0.47, 0.25];
  const CLOSE = 0.03; // of the window: findings that would lie upon each other
  const NODES = 4; // colours for nodes
  const FONT = "ui-monospace, monospace";

  // plotly.js takes some HTML in texts, links included; a task's name must not be that.
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const seconds = (time) => time.toFixed(6) + " s";
  const span = (since, until) =>
    until > since ? `${seconds(since)} to ${seconds(until)}` : seconds(since);
  const name = (lane) => `${lane.comm ?? "?"} (${lane.pid ?? "?"})  ${lane.vma}`;
  const pages = (of) =>
    Object.entries(of).map(([node, many]) => `N${node}=${many}`).join(" ") || "none";

  const TAGS = [
    { key: "tagged", name: "tagged (cd)", shape: "/" },
    { key: "untagged", name: "not tagged", shape: "" },
    { key: "unknown", name: "tag not known", shape: "." },
    { key: "mixed", name: "changes too often to draw", shape: "x" },
    { key: "none", name: "kernel without VM_CDM", shape: "" },
  ];
  const LOCKS = [
    { key: "none", symbol: "x", bad: true },
    { key: "read", symbol: "triangle-up", bad: true },
    { key: "other's", symbol: "diamond-open", bad: true },
    { key: "?", symbol: "circle-open", bad: false },
    { key: "write", symbol: "square", bad: false },
  ];
  const SORTS = [
    { key: "policy", name: "policy set", symbol: "hourglass-open" },
    { key: "call", name: "system call", symbol: "line-ns-open" },
    { key: "vma", name: "VMA made, split, merged, freed", symbol: "circle-open-dot" },
  ];
  const ACTIVITY = [
    { key: "came", name: "pages that came", dash: "solid", colour: "node0" },
    { key: "migrated in", name: "pages migrated in", dash: "dash", colour: "node2" },
    { key: "left", name: "pages that left", dash: "dot", colour: "node1" },
  ];

  // How the mmap lock was held: of several rows, the one that protects least.
  const lock = (mark) => {
    const held = mark.rows.map((row) => row.lock.split(">")[0].split("+")[0]);
    return LOCKS.find((one) => held.includes(one.key)) ?? LOCKS[3];
  };
  const rows = (mark) =>
    mark.rows.map((row) =>
      [row.count > 1 ? `${row.count} times` : "", row.what,
        row.flags && `flags ${row.flags}`, row.lock && `mmap lock: ${row.lock}`,
        row.task].filter(Boolean).join(", "));

  const bars = (one, colours, text) => ({
    type: "bar", orientation: "h", base: [], x: [], y: [], width: [], hovertext: [],
    customdata: [], text: text ? [] : undefined, textposition: text ? "inside" : undefined,
    insidetextanchor: "start", constraintext: "inside", textangle: 0, cliponaxis: true,
    textfont: { family: FONT, size: 11, color: colours["on-policy"] },
    hoverinfo: "text", name: one.name, legendgroup: one.name,
    marker: {
      color: one.colour, line: { color: colours.ink, width: 0.5 },
      pattern: { shape: one.shape ?? "", size: 7, solidity: 0.2, fillmode: "overlay",
        fgcolor: one.colour === colours.ground ? colours.soft : colours.ground },
    },
  });
  const points = (name, symbol, colour, size, more) => ({
    type: "scatter", mode: "markers", x: [], y: [], hovertext: [], customdata: [],
    hoverinfo: "text", name, marker: { symbol, color: colour, size, opacity: 1,
      line: { color: colour, width: 1.5 } }, ...more,
  });

  function stretches(traces, lane, place, number, end) {
    lane.stretches.forEach((one, at) => {
      const until = lane.stretches[at + 1]?.since ?? lane.until ?? end;
      const told = [name(lane), span(one.since, until), `VMA ${one.vma}`,
        `tag: ${TAGS.find((tag) => tag.key === one.tag).name}`, `policy ${one.policy}`];
      const put = (trace, [middle, height]) => {
        trace.base.push(one.since);
        trace.x.push(Math.max(until - one.since, 1e-6));
        trace.y.push(place + middle);
        trace.width.push(height);
        trace.hovertext.push(told.map(plain).join("<br>"));
        trace.customdata.push({ lane: number, stretch: at });
      };
      put(traces[one.tag], TAG);
      const policy = traces[one.cdm ? "names" : "other"];
      put(policy, POLICY);
      policy.text.push(plain(one.policy));
    });
  }

  function held(traces, lane, place, number, end, nodes) {
    const most = Math.max(1, ...lane.points.flatMap((one) => Object.values(one.pages)));
    const until = lane.until ?? end;
    nodes.forEach((node) => {
      const trace = traces["node" + node];
      const put = (time, many, pages_) => {
        trace.x.push(time);
        trace.y.push(many === null ? null : place + PAGES[0] - (PAGES[1] * many) / most);
        trace.hovertext.push(pages_ === null ? null :
          plain(`${name(lane)}\n${seconds(time)}: ${pages(pages_)} pages on CDM nodes`)
            .replace("\n", "<br>"));
        trace.customdata.push({ lane: number });
      };
      if (!lane.points.some((one) => one.pages[node])) return;
      put(lane.points[0].since, 0, null);
      let before = 0;
      for (const one of lane.points) {
        put(one.since, before, null);
        before = one.pages[node] ?? 0;
        put(one.since, before, one.pages);
      }
      put(until, before, null);
      put(until, 0, null);
      put(until, null, null);
    });
  }

  function marks(traces, lane, place, number) {
    lane.marks.forEach((mark, at) => {
      const trace = traces[mark.sort === "flags" ? "lock " + lock(mark).key : mark.sort];
      if (mark.sort === "pages") {
        trace.base.push(mark.since);
        trace.width.push(RUN[1]);
      }
      trace.x.push(mark.sort === "pages" ? Math.max(mark.until - mark.since, 1e-6) : mark.since);
      trace.y.push(place + (mark.sort === "flags" ? TAG[0] : MARKS));
      trace.hovertext.push([span(mark.since, mark.until), ...rows(mark),
        mark.more ? `and ${mark.more} rows more` : ""].filter(Boolean).map(plain).join("<br>"));
      trace.customdata.push({ lane: number, mark: at });
    });
  }

  function found(trace, data, lane, place, number, window) {
    const groups = [];
    const time = (at) => data.findings[at].until ?? lane.since;
    for (const at of lane.findings.toSorted((a, b) => time(a) - time(b))) {
      const last = groups.at(-1);
      if (last && time(at) - time(last[0]) < (window[1] - window[0]) * CLOSE) last.push(at);
      else groups.push([at]);
    }
    for (const group of groups) {
      const told = group.map((at) => data.findings[at]);
      trace.x.push(time(group[0]));
      trace.y.push(place + FOUND);
      trace.text.push([...new Set(told.map((one) => one.rule))].join(" "));
      trace.hovertext.push(told.map((one) =>
        plain(`${one.rule} ${one.name}: ${one.severity}`)).join("<br>"));
      trace.customdata.push({ lane: number, findings: group });
    }
  }

  function above(data, colours, legend) {
    const { since, width, counts } = data.activity;
    const begins = (at) => since + at * width;
    const told = (what, at) =>
      `${what}: ${counts[what][at]}<br>${span(begins(at), begins(at + 1))}`;
    const lines = ACTIVITY.filter((one) => counts[one.key]).map((one) => ({
      type: "scatter", mode: "lines", name: one.name, yaxis: "y2", legend,
      x: counts[one.key].map((_, at) => begins(at)), y: counts[one.key], hoverinfo: "text",
      hovertext: counts[one.key].map((_, at) => told(one.key, at)),
      line: { shape: "hv", dash: one.dash, width: 1.5, color: colours[one.colour] },
    }));
    const flags = (counts.flags ?? []).map((_, at) => at).filter((at) => counts.flags[at]);
    const ticks = { ...points("changes of vm_flags", "line-ns-open", colours.locked, 9),
      yaxis: "y2", legend, x: flags.map((at) => begins(at + 0.5)),
      y: flags.map(() => 0), hovertext: flags.map((at) => told("flags", at)) };
    return flags.length ? [...lines, ticks] : lines;
  }

  function traces(data, numbers, window, colours) {
    const nodes = data.recording.nodes, end = data.recording.seconds;
    const all = {};
    for (const one of TAGS)
      all[one.key] = bars({ ...one, colour: colours[one.key === "none" ? "untagged" : one.key] }, colours);
    all.names = bars({ name: "policy names a CDM node", shape: "", colour: colours["policy-cdm"] }, colours, true);
    all.other = bars({ name: "another policy", shape: "", colour: colours.policy }, colours, true);
    nodes.forEach((node, at) => {
      const colour = colours["node" + (at % NODES)];
      all["node" + node] = { type: "scatter", mode: "lines", x: [], y: [], hovertext: [],
        customdata: [], hoverinfo: "text", name: `pages on node ${node}`, fill: "toself",
        fillcolor: colour + "55", hoveron: "points", line: { color: colour, width: 1.5,
          dash: ["solid", "dot", "dash", "dashdot"][at % NODES] } };
    });
    all.pages = bars({ name: "pages come, move, leave", colour: colours.soft }, colours);
    for (const one of SORTS)
      all[one.key] = points(one.name, one.symbol, colours.soft, 9);
    for (const one of LOCKS.toReversed())
      all["lock " + one.key] = points(`flags change, mmap lock ${one.key}`, one.symbol,
        one.bad ? colours.unlocked : colours.locked, 12,
        { marker: { symbol: one.symbol, size: 12, line: { width: 1.5, color: one.bad && !one.symbol.endsWith("open") ? colours.ground : colours.locked },
          color: one.bad ? colours.unlocked : colours.locked } });
    all.findings = points("finding", "star", colours.finding, 14, { mode: "markers+text",
      text: [], textposition: "middle right",
      textfont: { color: colours.finding, size: 11, family: FONT } });
    numbers.forEach((number, place) => {
      const lane = data.lanes[number];
      stretches(all, lane, place, number, end);
      held(all, lane, place, number, end, nodes);
      marks(all, lane, place, number);
      found(all.findings, data, lane, place, number, window);
    });
    return Object.values(all).filter((trace) => trace.x.length);
  }

  function head(data, number, place, colours) {
    const lane = data.lanes[number];
    const rules = [...new Set(lane.findings.map((at) => data.findings[at].rule))].join(" ");
    const text = `${name(lane)}  ${rules}  ${lane.pages} pages, at most ${lane.most} on CDM nodes`;
    return { xref: "paper", x: 0, xanchor: "left", yref: "y", y: place - 0.49, yanchor: "top",
      text: plain(text), showarrow: false, captureevents: true, name: String(number),
      font: { family: FONT, size: 12, color: colours.ink }, bgcolor: colours.ground };
  }

  // What is missing may lie at any time from its beginning to its end.
  function lost(data, colours, legend) {
    const trace = { ...bars({ name: "events lost", shape: "x", colour: colours.mixed }, colours),
      yaxis: "y3", legend };
    for (const one of data.losses) {
      trace.base.push(one.since);
      trace.x.push(Math.max(one.until - one.since, 1e-6));
      trace.y.push(0);
      trace.width.push(1);
      trace.hovertext.push(plain(`${one.what}, ${span(one.since, one.until)}`));
      trace.customdata.push(null);
    }
    return data.losses.length ? [trace] : [];
  }

  function title(data, colours) {
    const text = `the whole recording: pages per ${(data.activity.width * 1e3).toPrecision(3)} ms`;
    return { xref: "paper", x: 1, xanchor: "right", yref: "y2 domain", y: 1, yanchor: "top",
      text, showarrow: false, bgcolor: colours.ground, font: { size: 11, color: colours.soft } };
  }

  // numbers: of the lanes to draw; chosen: of the one that stands out; window: seconds.
  function figure(data, numbers, chosen, window, colours, width) {
    const many = Math.max(numbers.length, 1), narrow = width < 900;
    const under = narrow ? 330 : 30, legend = narrow ? "legend" : "legend2";
    const inner = ABOVE + AXIS + many * HEIGHT, height = inner + under + 10;
    const text = { color: colours.ink, size: 12 };
    const low = (many * HEIGHT) / inner;
    const back = (place, colour) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y",
      y0: place - 0.5, y1: place + 0.5, fillcolor: colour, line: { width: 0 }, layer: "below" });
    return {
      data: [...lost(data, colours, legend), ...above(data, colours, legend), ...traces(data, numbers, window, colours)],
      layout: {
        width, height, margin: { l: 10, r: narrow ? 10 : 250, t: 10, b: under },
        paper_bgcolor: colours.ground, plot_bgcolor: colours.ground, font: text,
        barmode: "overlay", hovermode: "closest", dragmode: "zoom",
        hoverlabel: { align: "left", font: { family: FONT, size: 12 }, namelength: -1 },
        uniformtext: { mode: "hide", minsize: 8 },
        xaxis: { range: window, side: "top", anchor: "y", gridcolor: colours.grid, zeroline: false,
          title: { text: "seconds since recording began", standoff: 4 }, ticks: "outside",
          showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: colours.soft },
        yaxis: { range: [many - 0.5, -0.5], domain: [0, low], fixedrange: true, showgrid: false,
          zeroline: false, showticklabels: false },
        yaxis3: { domain: [1 - LOST / inner, 1], fixedrange: true, anchor: "x", visible: false },
        yaxis2: { domain: [(many * HEIGHT + AXIS) / inner, 1 - (1.5 * LOST) / inner], fixedrange: true, anchor: "x",
          gridcolor: colours.grid, zeroline: false, rangemode: "tozero", nticks: 4,
          tickfont: { size: 10 }, ticklabelposition: "inside top" },
        legend: narrow ? { orientation: "h", y: -0.01, yanchor: "top", x: 0 }
          : { y: low, yanchor: "top", x: 1.01 },
        legend2: { y: 1, yanchor: "top", x: 1.01 },
        annotations: [title(data, colours),
          ...numbers.map((number, place) => head(data, number, place, colours))],
        shapes: [
          ...numbers.flatMap((number, place) => number === chosen ? [back(place, colours.chosen)]
            : place % 2 ? [back(place, colours.panel)] : []),
          ...data.losses.map((one) => ({ type: "rect", xref: "x", yref: "paper", x0: one.since,
            x1: one.until, y0: 0, y1: 1, layer: "below", opacity: 0.12,
            fillcolor: colours.mixed, line: { width: 0 } })),
        ],
      },
      config: { displayModeBar: false, doubleClick: false, scrollZoom: false },
    };
  }

  return { figure, name, rows, seconds, span, pages };
})();
