"use strict";
(() => {
  const survey = JSON.parse(document.getElementById("manifest").textContent);
  const byId = (id) => document.getElementById(id);
  const query = new URLSearchParams(location.search);
  const COLUMNS = ["survey_id", "rater_id", "pair_id", "question", "choice", "left_id", "right_id", "ms", "order", "ts", "source"];
  const CHOICES = [["left", "Left"], ["tie", "No difference"], ["right", "Right"]];
  const KEYS = { 1: "left", ArrowLeft: "left", 2: "tie", ArrowDown: "tie", 3: "right", ArrowRight: "right" };

  // Every page opened from a file shares one storage, so the key holds survey and rater; private windows may refuse.
  const store = {
    works: true,
    read(name) {
      try { return localStorage.getItem(name); } catch { this.works = false; return null; }
    },
    write(name, value) {
      try { localStorage.setItem(name, value); } catch { this.works = false; }
    },
  };

  const prefix = `crest-survey:${survey.survey_id}`;
  const isId = (text) => /^[A-Za-z0-9_-]{1,64}$/.test(text || "");
  const rater = isId(query.get("rater")) ? query.get("rater") : store.read(prefix) || newRater();
  const key = `${prefix}:${rater}`;
  store.write(prefix, rater);
  const state = load();
  const plan = survey.plans[state.plan];
  let shownAt = 0;

  function newRater() {
    const numbers = crypto.getRandomValues(new Uint8Array(8));
    return "rater_" + Array.from(numbers, (n) => n.toString(16).padStart(2, "0")).join("");
  }

  function planNumber() {
    const asked = query.get("plan");
    if (/^\d{1,6}$/.test(asked || "") && Number(asked) < survey.plans.length) return Number(asked);
    let hash = 2166136261; // FNV-1a: raters without a link of their own spread over the plans
    for (const character of rater) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
    return (hash >>> 0) % survey.plans.length;
  }

  // One entry a pair: a page that sees an old state of the storage (a second tab, a browser under load) can then
  // add its answers but never overwrite others.
  function load() {
    const found = { plan: planNumber(), at: 0, answers: {} };
    const place = readObject(key);
    if (survey.plans[place.plan]) Object.assign(found, { plan: place.plan, at: place.at || 0 });
    for (const [pairId] of survey.plans[found.plan]) {
      const given = readObject(`${key}:${pairId}`);
      if (Object.keys(given).length) found.answers[pairId] = given;
    }
    return found;
  }

  function readObject(name) {
    try { return JSON.parse(store.read(name)) || {}; } catch { return {}; } // a damaged entry counts as none
  }

  function saveAnswers(pairId) {
    store.write(`${key}:${pairId}`, JSON.stringify(state.answers[pairId]));
    savePlace();
  }

  function savePlace() { store.write(key, JSON.stringify({ plan: state.plan, at: state.at })); }

  function answersAt(place) { return state.answers[plan[place][0]] || {}; }

  function isDone(place) { return survey.questions.every((question) => answersAt(place)[question.id]); }

  function show(id) {
    for (const name of ["welcome", "pair", "end"]) byId(name).hidden = name !== id;
    byId("download-now").hidden = id !== "pair";
  }

  function welcome() {
    show("welcome");
    document.title = survey.title;
    byId("welcome-title").textContent = survey.title;
    byId("consent").textContent = survey.consent;
    byId("contact").textContent = survey.contact && `Questions: ${survey.contact}`;
    byId("contact").hidden = !survey.contact;
    byId("storage").hidden = store.works;
    byId("question-count").textContent = survey.questions.length === 1 ? "one question" : `${survey.questions.length} questions`;
    byId("pair-count").textContent = plan.length;
    const begun = Object.keys(state.answers).length > 0;
    byId("start").textContent = begun ? `Go on with pair ${Math.min(state.at + 1, plan.length)}` : "I agree, start";
  }

  function pair() {
    if (state.at >= plan.length) return end();
    show("pair");
    const [pairId, left, right] = plan[state.at];
    const prompt = survey.pairs[pairId];
    byId("progress").textContent = `Pair ${state.at + 1} of ${plan.length}`;
    byId("bar").max = plan.length;
    byId("bar").value = state.at;
    byId("prompt").textContent = prompt;
    picture("left", left, `Left option for: ${prompt}`);
    picture("right", right, `Right option for: ${prompt}`);
    byId("back").disabled = state.at === 0;
    render();
    byId("prompt").focus({ preventScroll: true });
    scrollTo(0, 0);
    shownAt = performance.now();
    if (state.at + 1 < plan.length) for (const id of plan[state.at + 1].slice(1)) new Image().src = `images/${id}.png`;
  }

  function picture(place, id, alt) {
    byId(place).alt = alt;
    byId(place).src = `images/${id}.png`;
  }

  function build() {
    for (const question of survey.questions) {
      const group = document.createElement("fieldset");
      group.dataset.question = question.id;
      const legend = document.createElement("legend");
      legend.textContent = question.text;
      const choices = document.createElement("div");
      choices.className = "choices";
      for (const [side, label] of CHOICES) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = label;
        button.dataset.side = side;
        button.addEventListener("click", () => answer(question.id, side));
        choices.append(button);
      }
      group.append(legend, choices);
      byId("questions").append(group);
    }
  }

  function render() {
    const [, left, right] = plan[state.at];
    const sides = { left, right, tie: "tie" };
    for (const group of byId("questions").children) {
      const given = answersAt(state.at)[group.dataset.question];
      for (const button of group.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(Boolean(given) && given.choice === sides[button.dataset.side]));
      }
    }
    byId("next").disabled = !isDone(state.at);
    byId("next").textContent = state.at + 1 === plan.length ? "Finish" : "Next";
  }

  function answer(question, side) {
    const [pairId, left, right] = plan[state.at];
    const all = (state.answers[pairId] = state.answers[pairId] || {});
    const choice = side === "tie" ? "tie" : side === "left" ? left : right;
    all[question] = { choice, ms: Math.round(performance.now() - shownAt), ts: new Date().toISOString() };
    saveAnswers(pairId);
    render();
  }

  function undo() {
    const given = state.answers[plan[state.at][0]];
    const last = survey.questions.map((question) => question.id).filter((id) => given && given[id]).pop();
    if (!last) return back();
    delete given[last];
    saveAnswers(plan[state.at][0]);
    render();
  }

  function next() {
    if (!isDone(state.at)) return;
    state.at += 1;
    savePlace();
    pair();
  }

  function back() {
    if (state.at === 0) return;
    state.at -= 1;
    savePlace();
    pair();
  }

  function end() {
    show("end");
    byId("saved").textContent = "";
    byId("end-title").focus();
  }

  function csv() {
    const lines = [COLUMNS.join(",")];
    plan.forEach(([pairId, left, right], place) => {
      for (const { id } of survey.questions) {
        const given = answersAt(place)[id];
        if (!given) continue;
        const row = [survey.survey_id, rater, pairId, id, given.choice, left, right, given.ms, place + 1, given.ts, "static"];
        lines.push(row.map((cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell)).join(","));
      }
    });
    return lines.join("\n") + "\n";
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = `answers-${rater}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    byId("saved").textContent = `Saved as ${link.download}.`;
  }

  document.addEventListener("keydown", (event) => {
    if (byId("pair").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const side = KEYS[event.key];
    if (side) {
      // only a question that is still open: a stray key must not overturn an answer, Backspace does that
      const open = survey.questions.find((question) => !answersAt(state.at)[question.id]);
      if (open) answer(open.id, side);
    } else if (event.key === "Backspace") undo();
    else if (event.key === "Enter" && !document.activeElement.closest("button")) next();
    else return;
    event.preventDefault();
  });

  byId("rater").textContent = rater;
  byId("start").addEventListener("click", pair);
  byId("next").addEventListener("click", next);
  byId("back").addEventListener("click", back);
  byId("review").addEventListener("click", back);
  byId("download").addEventListener("click", download);
  byId("download-now").addEventListener("click", download);
  build();
  welcome();
})();
