// What a page does beside its links and forms. Without it every page works all the same.
"use strict";

const typing = (element) => element && /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);

// A still in the gallery becomes its clip.
document.addEventListener("click", (event) => {
  const still = event.target.closest("a[data-clip]");
  if (still && !event.metaKey && !event.ctrlKey) {
    event.preventDefault();
    const clip = document.createElement("video");
    Object.assign(clip, { src: still.dataset.clip, controls: true, loop: true, autoplay: true, playsInline: true });
    clip.setAttribute("aria-label", still.getAttribute("aria-label"));
    still.replaceWith(clip);
    clip.focus();
  }
  const copy = event.target.closest("button[data-copy]");
  if (!copy) return;
  const text = document.getElementById(copy.dataset.copy);
  getSelection().selectAllChildren(text); // to be copied by hand, where there is no HTTPS and so no clipboard
  if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(() => { copy.textContent = "✓"; });
});

// What cannot be loaded, since its link has ended or its object is gone, says so in its place.
document.addEventListener("error", (event) => {
  if (!/^(IMG|VIDEO|AUDIO)$/.test(event.target.tagName)) return;
  const why = document.createElement("span");
  why.className = "missing bad";
  why.textContent = document.body.dataset.gone;
  event.target.replaceWith(why);
}, true);

for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;

// A page that nobody looks at lets its stream go: a browser has six connections to a host, and each tab would take one.
const streams = new Set();
const create = htmx.createEventSource;
htmx.createEventSource = (url) => {
  const made = create(url);
  streams.add(made);
  return made;
};
document.addEventListener("visibilitychange", () => {
  for (const stream of streams) stream.close();
  streams.clear();
  if (document.hidden) return;
  for (const part of document.querySelectorAll("[sse-connect]")) {
    const anew = part.cloneNode(true);
    part.replaceWith(anew);
    htmx.process(anew); // which follows again
  }
});

// A page that moves says so when it cannot, and goes on by itself.
for (const [name, away] of [["htmx:sseError", true], ["htmx:sseOpen", false]]) {
  document.addEventListener(name, () => { document.getElementById("away").hidden = !away; });
}

// A form that was sent cannot be sent twice by a double click.
document.addEventListener("submit", (event) => {
  for (const button of event.target.querySelectorAll("button")) setTimeout(() => { button.disabled = true; }, 0);
});
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form button:disabled")) button.disabled = false;
});

// The keyboard of the review board: a letter presses, or goes to, what shows it.
document.addEventListener("keydown", (event) => {
  const board = document.querySelector("[data-board]");
  // a key that is held decides once, and one that ends a composition of Chinese is no shortcut
  if (!board || event.altKey || event.metaKey || event.repeat || event.isComposing) return;
  if (typing(event.target)) {
    if (event.key === "Enter" && event.ctrlKey) event.target.form.requestSubmit();
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey) return;
  if (event.key === " ") {
    const clip = board.querySelector(".take.now video, .take.now audio");
    if (clip && document.activeElement.tagName !== "BUTTON") {
      event.preventDefault();
      if (clip.paused) clip.play(); else clip.pause();
    }
    return;
  }
  const meant = board.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!meant) return;
  event.preventDefault();
  if (typing(meant)) { meant.focus(); if (meant.select) meant.select(); } else meant.click();
});
