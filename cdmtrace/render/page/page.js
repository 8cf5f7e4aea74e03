// The filter, the window of time, the details, and the matrix of migrations.
"use strict";

(() => {
  const PER_PAGE = 10;
  const PAPER = 700; // pixels (of 1/96 inch) that a sheet is wide, within its margins
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { lanes: all, findings, migrations, recording } = data;
  const END = Math.max(recording.seconds, 1e-6);
  const LEAST = 2e-6; // seconds that a window has at least

  const state = { window: whole(), first: 0, chosen: null, top: null, draws: 0, paper: null };

  // Recording may begin long before anything happens that is of interest, and end after.
  function whole() {
    if (!all.length) return [0, END];
    const first = Math.min(END, ...all.map((lane) => lane.since));
    const last = Math.max(0, ...all.map((lane) => lane.until ?? END)) || END;
    const edge = (last - first) * 0.02 || LEAST;
    return [Math.max(first - edge, 0), last + edge];
  }

  // --- the filter ---------------------------------------------------------------

  const wanted = () => ({
    pid: $("by-process").value, rule: $("by-rule").value,
    text: $("by-text").value.trim().toLowerCase().replace(/^0x/, ""),
  });
  const pid = (of) => String(of.pid || "?");
  const isFinding = (one, by) =>
    (!by.pid || pid(one) === by.pid) && (!by.rule || one.rule === by.rule) &&
    meets(`${one.comm} ${one.vma}`, one.vma, by.text);
  const isLane = (lane, by) =>
    (!by.pid || pid(lane) === by.pid) &&
    (!by.rule || lane.findings.some((at) => findings[at].rule === by.rule)) &&
    meets(lanes.name(lane), lane.vma, by.text);

  // A text is part of what a VMA is called, or an address in it.
  function meets(called, vma, text) {
    if (!text || called.toLowerCase().includes(text)) return true;
    if (!/^[0-9a-f]{4,16}$/.test(text)) return false;
    const [start, end] = vma.split("-").map((one) => BigInt("0x" + one));
    const address = BigInt("0x" + text);
    return start <= address && address < end;
  }

  const visible = () => {
    const by = wanted();
    return all.map((_, at) => at).filter((at) => isLane(all[at], by));
  };

  function filter() {
    const by = wanted(), shown = new Set(visible());
    let many = 0;
    document.querySelectorAll("article[data-finding]").forEach((article) => {
      article.hidden = !isFinding(findings[article.dataset.finding], by);
      many += !article.hidden;
    });
    document.querySelectorAll("tr[data-lane]").forEach((row) => {
      row.hidden = !shown.has(Number(row.dataset.lane));
    });
    document.querySelectorAll("tr[data-pid]").forEach((row) => {
      row.hidden = Boolean(by.pid) && row.dataset.pid !== by.pid;
    });
    $("matches").textContent =
      `${shown.size} of ${all.length} VMAs, ${many} of ${findings.length} findings`;
    state.first = 0;
    matrix(by.pid);
    draw();
  }

  // --- the lanes ----------------------------------------------------------------

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = [...document.styleSheets[0].cssRules[0].style].filter((one) => one.startsWith("--"));
    return Object.fromEntries(names.map((one) => [one.slice(2), style.getPropertyValue(one).trim()]));
  }

  function draw() {
    const numbers = visible(), plot = $("plot");
    const page = numbers.slice(state.first, state.first + PER_PAGE);
    const asked = page.indexOf(state.top);
    if (asked > 0) page.unshift(...page.splice(asked, 1));
    const figure = lanes.figure(data, page, state.chosen, state.window, colours(),
      state.paper ?? plot.clientWidth);
    const isNew = !plot.layout;
    const turn = ++state.draws;
    plot.setAttribute("aria-busy", "true");
    Plotly.react(plot, figure.data, figure.layout, figure.config).then(() => {
      if (turn === state.draws) plot.setAttribute("aria-busy", "false");
    });
    if (isNew) listen(plot);
    $("window").textContent = lanes.span(Math.max(state.window[0], 0), Math.min(state.window[1], END));
    $("shown").textContent = numbers.length
      ? `${state.first + 1} to ${state.first + page.length} of ${numbers.length}` : "no VMA";
    document.querySelector('[data-turn="-1"]').disabled = !state.first;
    document.querySelector('[data-turn="1"]').disabled = state.first + PER_PAGE >= numbers.length;
  }

  function listen(plot) {
    plot.on("plotly_relayout", (change) => {
      const range = change["xaxis.range"] ?? [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (range[0] !== undefined) look(range[0], range[1]);
    });
    plot.on("plotly_doubleclick", () => look(...whole()));
    plot.on("plotly_click", ({ points }) => {
      const about = points.map((one) => one.customdata).find(Boolean);
      if (about) tell(about);
    });
    plot.on("plotly_clickannotation", ({ annotation }) => tell({ lane: Number(annotation.name) }));
  }

  function look(since, until) {
    const width = Math.min(Math.max(until - since, LEAST), END * 1.02);
    const first = Math.min(Math.max(since, 0), END * 1.02 - width);
    state.window = [first, first + width];
    draw();
  }

  const WAYS = {
    in: ([a, b]) => [a + (b - a) / 4, b - (b - a) / 4],
    out: ([a, b]) => [a - (b - a) / 2, b + (b - a) / 2],
    left: ([a, b]) => [a - (b - a) / 4, b - (b - a) / 4],
    right: ([a, b]) => [a + (b - a) / 4, b + (b - a) / 4],
    all: () => whole(),
  };
  const KEYS = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all" };

  // --- details ------------------------------------------------------------------

  function element(kind, text, ...children) {
    const made = document.createElement(kind);
    if (text !== null) made.textContent = text;
    made.append(...children);
    return made;
  }

  function table(heads, rows) {
    const cells = (row, kind) => element("tr", null, ...row.map((cell) => element(kind, cell)));
    return element("table", null, element("thead", null, cells(heads, "th")),
      element("tbody", null, ...rows.map((row) => cells(row, "td"))));
  }

  const markRows = (mark) => [
    ...mark.rows.map((row) => [row.time.toFixed(6), row.count, `cpu${row.cpu}`, row.task, row.lock, row.flags, row.what]),
    ...(mark.more ? [["", mark.more, "", "", "", "", "of further sorts"]] : []),
  ];
  const HEADS = ["time (s)", "times", "cpu", "task", "mmap lock", "flags", "what"];

  // about: the number of a lane, and of a mark, a stretch or findings if they are meant.
  function tell(about, top = false) {
    const told = [], lane = all[about.lane];
    for (const at of about.findings ?? []) {
      const article = document.querySelector(`article[data-finding="${at}"]`);
      told.push(element("pre", article.querySelector("pre").textContent));
    }
    if (lane) told.push(element("h3", lanes.name(lane)));
    if (about.mark !== undefined) {
      const mark = lane.marks[about.mark];
      told.push(element("p", `${lanes.span(mark.since, mark.until)}, ${mark.count === 1 ? "1 row" : mark.count + " rows"}`));
      told.push(table(HEADS, markRows(mark)));
    } else if (about.stretch !== undefined) {
      const at = lane.stretches[about.stretch];
      const until = lane.stretches[about.stretch + 1]?.since ?? lane.until ?? END;
      told.push(table(["from", "until", "VMA", "tag", "policy", "pages"],
        [[lanes.seconds(at.since), lanes.seconds(until), at.vma, at.tag, at.policy,
          at.known ? "all known" : "there may be more than the recording tells of"]]));
    } else if (lane && !about.findings) {
      const marks = lane.marks.toSorted((a, b) => a.since - b.since);
      told.push(table(HEADS, marks.flatMap(markRows)));
    }
    if (lane) {
      told.push(element("p", "Row by row: ", element("code", lane.command)));
      choose(about.lane, top);
    } else {
      told.push(element("p", "It has no lane: it is about no VMA, or too many are worse."));
    }
    $("told").replaceChildren(...told);
    $("details").hidden = false;
    $("details").scrollTop = 0;
  }

  // Have a lane stand out, on the page of lanes that has it; on its top if asked by name.
  function choose(number, top) {
    if (!visible().includes(number)) {
      for (const id of ["by-process", "by-rule", "by-text"]) $(id).value = "";
      filter();
    }
    const place = visible().indexOf(number);
    state.chosen = number;
    if (top) state.top = number;
    state.first = place - (place % PER_PAGE);
    draw();
  }

  function show(number) {
    const one = findings[number];
    document.querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
    document.querySelector(`article[data-finding="${number}"]`).classList.add("chosen");
    if (one.since !== null && one.lane !== null) {
      const edge = Math.max((one.until - one.since) * 0.15, (END / 1e4));
      look(one.since - edge, one.until + edge);
    }
    tell({ lane: one.lane, findings: [number] }, true);
    $("toolbar").scrollIntoView({ block: "start" });
  }

  // --- migrations ---------------------------------------------------------------

  function matrix(by) {
    const rows = migrations.filter((row) => !by || String(row.pid ?? "?") === by);
    const place = $("migrations");
    if (!rows.length) return place.replaceChildren(element("p", "None."));
    const nodes = (key) => [...new Set(rows.map((row) => row[key] ?? "?"))].sort((a, b) => a - b);
    const from = nodes("from"), to = nodes("to");
    const sum = (these) => these.reduce((total, row) => total + row.pages, 0);
    const most = Math.max(...from.flatMap((a) => to.map((b) => sum(way(a, b)))));
    function way(a, b) {
      return rows.filter((row) => (row.from ?? "?") === a && (row.to ?? "?") === b);
    }
    const grid = element("table", null);
    grid.className = "matrix";
    grid.append(element("caption", "pages, from the node of the row to that of the column"));
    grid.append(element("tr", null, element("th", "from \\ to"), ...to.map((b) => element("th", `node ${b}`))));
    for (const a of from) {
      const cells = to.map((b) => {
        const many = sum(way(a, b)), cell = element("td", many ? many.toLocaleString("en") : "-");
        if (many) cell.style.background = `color-mix(in srgb, var(--tagged) ${10 + (45 * many) / most}%, var(--ground))`;
        cell.title = way(a, b).map((row) => `${row.cause}: ${row.pages}`).join("\n");
        return cell;
      });
      grid.append(element("tr", null, element("th", `node ${a}`), ...cells));
    }
    const LISTED = 50;
    const causes = table(["pid", "task", "cause", "from", "to", "pages"], rows.slice(0, LISTED).map((row) =>
      [row.pid ?? "?", row.comm ?? "?", row.cause, row.from ?? "?", row.to ?? "?", row.pages.toLocaleString("en")]));
    const more = rows.length - LISTED;
    place.replaceChildren(element("div", null, grid, causes),
      ...(more > 0 ? [element("p", `${more} more, which the matrix counts: cdmtrace report`)] : []));
    place.firstChild.className = "migrations";
  }

  // --- what people do -----------------------------------------------------------

  $("by-text").addEventListener("input", filter);
  for (const id of ["by-process", "by-rule"]) $(id).addEventListener("change", filter);
  $("filter").addEventListener("reset", () => setTimeout(filter));
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("close").addEventListener("click", () => {
    $("details").hidden = true;
    state.chosen = state.top = null;
    draw();
  });
  $("plot").addEventListener("keydown", (event) => {
    const way = KEYS[event.key];
    if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    look(...WAYS[way](state.window));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("details").hidden) $("close").click();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { zoom, turn, finding, lane, rule } = button.dataset;
    if (zoom) look(...WAYS[zoom](state.window));
    if (turn) {
      state.first += Number(turn) * PER_PAGE;
      draw();
    }
    if (rule) {
      $("by-rule").value = rule;
      filter();
    }
    if (finding) show(Number(finding));
    if (lane) {
      tell({ lane: Number(lane) }, true);
      $("toolbar").scrollIntoView({ block: "start" });
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    state.paper = PAPER;
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
    draw();
  });
  window.addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    state.paper = null;
    draw();
  });

  filter();
})();
