"use strict";

const $ = (id) => document.getElementById(id);
const budget = () => `${$("budget").value}%`;
let job = null;      // address of the job that is shown
let name = "video";  // the file's name without its ending
let upload = null;   // the request that sends the file
let shown = null;    // the summary that is drawn
let film = null;     // {budget, blob} of the film made last
let asked = 0;       // number of the newest question, so that late answers are dropped

async function ask(address, options = {}) {
  const key = $("key").value;
  const headers = {...options.headers, ...(key && {Authorization: `Bearer ${key}`})};
  const answer = await fetch(address, {...options, headers});
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-row").hidden = false;
  const body = await answer.json().catch(() => ({}));
  throw new Error(body.error || `The server answered ${answer.status}.`);
}

function fail(error) {
  $("work").hidden = true;
  $("error").textContent = error.message;
  $("error").hidden = false;
}

function clock(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function doing(what, share) {
  $("doing").textContent = what;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

// fetch cannot tell how much of a file it has sent
function send(file) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("budget", budget());
    form.append("video", file, file.name);
    upload = new XMLHttpRequest();
    upload.open("POST", "v1/summarize");
    upload.setRequestHeader("Prefer", "respond-async");
    if ($("key").value) upload.setRequestHeader("Authorization", `Bearer ${$("key").value}`);
    upload.upload.onprogress = (event) => doing("Sending the video", event.loaded / event.total);
    upload.onerror = () => reject(new Error("The server cannot be reached."));
    upload.onabort = () => reject(null);
    upload.onload = () => {
      let body = {};
      try { body = JSON.parse(upload.responseText); } catch { /* told by the status */ }
      if (upload.status === 202) resolve(body.id);
      else {
        if (upload.status === 401) $("key-row").hidden = false;
        reject(new Error(body.error || `The server answered ${upload.status}.`));
      }
    };
    upload.send(form);
  });
}

async function summarize(file) {
  cancel();
  name = file.name.replace(/\.[^.]*$/, "") || "video";
  $("error").hidden = $("result").hidden = true;
  $("film").hidden = true;
  $("film").removeAttribute("src");
  $("work").hidden = false;
  doing("Sending the video", 0);
  film = null;
  try {
    const mine = job = `v1/jobs/${await send(file)}`;
    for (;;) {
      const state = await (await ask(mine)).json();
      if (job !== mine) return;
      if (state.state === "done") break;
      if (state.error) throw new Error(state.error);
      doing(state.state === "queued" ? "Waiting" : "Watching the video", state.progress || null);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    $("work").hidden = true;
    $("result").hidden = false;
    await choose();
  } catch (error) {
    if (error) fail(error);
  }
}

function cancel() {
  if (upload) upload.abort();
  if (job) ask(job, {method: "DELETE"}).catch(() => {});
  upload = job = null;
  $("work").hidden = true;
}

async function choose() {
  $("percent").textContent = `${$("budget").value} %`;
  const mine = ++asked;
  try {
    const answer = await (await ask(`${job}/summary?budget=${encodeURIComponent(budget())}`)).json();
    if (mine !== asked) return;
    shown = answer;
    draw();
  } catch (error) {
    fail(error);
  }
}

function element(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function draw() {
  const x = (frame) => 1000 * frame / shown.n_frames;
  const most = Math.max(...shown.scores, 1e-9);
  const parts = shown.segments.map(([start, end]) =>
    element("rect", {class: "kept", x: x(start), y: 0, width: x(end) - x(start), height: 200}));
  for (const shot of shown.shots.slice(1)) {
    parts.push(element("line", {class: "cut", x1: x(shot.start_frame), x2: x(shot.start_frame), y1: 0, y2: 200}));
  }
  const points = shown.scores.map((score, step) => `${x(shown.picks[step])},${195 - 180 * score / most}`);
  parts.push(element("polyline", {class: "scores", points: points.join(" ")}));
  $("curve").replaceChildren(...parts);
  const kept = shown.shots.filter((shot) => shot.chosen).length;
  $("facts").textContent = `${clock(shown.duration_s)} of ${clock(shown.source_duration_s)}, ` +
    `${kept} of ${shown.shots.length} shots` + [shown.fallback, ...shown.warnings].filter(Boolean).map((note) => `; ${note}`).join("");
  $("end").textContent = clock(shown.source_duration_s);
}

async function makeFilm() {
  const wanted = budget();
  if (!film || film.budget !== wanted) {
    $("making").textContent = "Cutting the film";
    $("play").disabled = $("save-film").disabled = true;
    try {
      const answer = await ask(`${job}/video?budget=${encodeURIComponent(wanted)}`);
      film = {budget: wanted, blob: await answer.blob()};
    } finally {
      $("making").textContent = "";
      $("play").disabled = $("save-film").disabled = false;
    }
  }
  return film.blob;
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}.summary.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", () => { if ($("file").files.length) summarize($("file").files[0]); $("file").value = ""; });
$("cancel").addEventListener("click", cancel);
$("budget").addEventListener("input", choose);
$("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(shown, null, 1)], {type: "application/json"}), "json"));
$("save-film").addEventListener("click", () => makeFilm().then((blob) => save(blob, "mp4")).catch(fail));
$("play").addEventListener("click", () => makeFilm().then((blob) => {
  if ($("film").src) URL.revokeObjectURL($("film").src);
  $("film").src = URL.createObjectURL(blob);
  $("film").hidden = false;
  return $("film").play();
}).catch(fail));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) summarize(event.dataTransfer.files[0]);
  });
}
