"use strict";
(() => {
  const { method, grey } = document.body.dataset;
  const of = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("#answers button")];
  const images = [...document.querySelectorAll("#stage img")];
  const loaded = new Map(); // key of a picture -> promise of its address in this page
  let [rater, state, since, busy] = ["", null, 0, false];

  const say = (element, text) => {
    element.textContent = text;
    element.hidden = !text;
  };

  const show = (view) => {
    document.body.dataset.view = view;
    of("place").hidden = of("progress").hidden = view === "start";
  };

  // Answers come back as JSON, also refusals; no answer at all is said in words and can be tried again.
  const ask = async (path, body) => {
    let answer;
    try {
      answer = await fetch(path, body && {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
      });
    } catch {
      throw new Error("The server does not answer. Is it still running? Nothing that was confirmed is lost.");
    }
    const content = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(content.error), { status: answer.status });
    return content;
  };

  const load = (key) => {
    if (!loaded.has(key)) {
      const address = fetch(`picture/${key}`).then(async (answer) => {
        if (!answer.ok) throw new Error((await answer.json()).error);
        return URL.createObjectURL(await answer.blob());
      });
      address.catch(() => loaded.delete(key));
      loaded.set(key, address);
    }
    return loaded.get(key);
  };

  const forget = (kept) => {
    for (const [key, address] of loaded) {
      if (kept.includes(key)) continue;
      address.then(URL.revokeObjectURL, () => {});
      loaded.delete(key);
    }
  };

  const enable = (on) => {
    for (const button of buttons) button.disabled = !on;
    of("undo").disabled = busy || !state || state.question === 0;
  };

  // One pixel of the picture on one of the screen, whatever the density of the screen, if there is room.
  const fit = () => {
    if (!state || !state.pictures.length) return 1;
    const density = window.devicePixelRatio;
    const scale = Math.min(1, ...state.pictures.map(({ width, height }, i) => {
      const room = images[i].parentElement;
      return Math.min((room.clientWidth * density) / width, (room.clientHeight * density) / height);
    }));
    state.pictures.forEach(({ width, height }, i) => {
      images[i].style.width = `${(width * scale) / density}px`;
      images[i].style.height = `${(height * scale) / density}px`;
    });
    return scale;
  };

  const describeScale = (scale) => {
    if (scale < 1) return `Shown at ${Math.max(1, Math.floor(100 * scale))} %: larger than the window. Faults may not show.`;
    if (!Number.isInteger(window.devicePixelRatio)) return "The browser scales this page: set its zoom to 100 %.";
    return "";
  };

  const refit = () => {
    if (document.body.dataset.view !== "ask") return 1;
    say(of("note"), "");
    let scale = fit();
    const note = describeScale(scale);
    say(of("note"), note);
    if (note) scale = fit(); // the note itself takes room
    return scale;
  };

  const describePlace = () => {
    const { question, total, training } = state;
    return question === total ? `${total} of ${total}` : `${training ? "Practice: does not count. " : ""}Question ${question + 1} of ${total}`;
  };

  const go = async (next, rested = false) => {
    state = next;
    say(of("place"), `${state.rater}, ${describePlace()}`);
    of("progress").max = state.total;
    of("progress").value = state.question;
    if (!state.pictures.length) {
      forget([]);
      show("end");
      say(of("status"), "Every question is answered");
      return;
    }
    if (state.pause && !rested) {
      show("pause");
      of("continue").focus();
      return;
    }
    await present();
  };

  const present = async () => {
    show("ask");
    enable(false);
    const { pictures, ahead } = state;
    for (const image of images) image.hidden = true;
    say(of("note"), "");
    const rest = new Promise((resolve) => setTimeout(resolve, Number(grey)));
    const addresses = await Promise.all(pictures.map(({ key }) => load(key)));
    await rest;
    await Promise.all(addresses.map(async (address, i) => {
      images[i].src = address;
      await images[i].decode();
    }));
    refit();
    for (const image of images) image.hidden = false;
    of("status").textContent = describePlace();
    since = performance.now();
    forget([...pictures.map(({ key }) => key), ...ahead]);
    for (const key of ahead) load(key).catch(() => {}); // its own turn tells of its failure
  };

  // What a person does is done once; until it is confirmed nothing else is.
  const act = async (work) => {
    if (busy) return;
    busy = true;
    const focused = document.activeElement; // which is lost while it is disabled
    enable(false);
    say(of("failure"), "");
    of("again").hidden = true;
    try {
      await work();
    } catch (error) {
      say(of("failure"), error.message);
      of("again").hidden = !rater;
      of("again").onclick = () => act(error.retry || refresh);
    }
    busy = false;
    enable(document.body.dataset.view === "ask" && images.every((image) => !image.hidden));
    if (focused !== document.activeElement && (buttons.includes(focused) || focused === of("undo"))) focused.focus();
  };

  const refresh = async () => go(await ask(`question?rater=${encodeURIComponent(rater)}`));

  const deliver = async (body) => {
    let next;
    try {
      next = await ask("answer", body);
    } catch (error) {
      if (error.status === 409) { // another tab was quicker: this one goes on where that one is
        await refresh();
        say(of("failure"), error.message);
        return;
      }
      if (error.status === undefined) error.retry = () => deliver(body);
      throw error;
    }
    await go(next);
  };

  const answer = (value) => act(async () => {
    const seconds = Math.round(performance.now() - since) / 1000;
    const body = { rater, question: state.question, pictures: state.pictures.map(({ key }) => key), answer: value, seconds, scale: refit() };
    for (const image of images) image.hidden = true;
    await deliver(body);
  });

  const undo = () => act(async () => {
    if (!state || !state.question) return;
    await go(await ask("undo", { rater, question: state.question }).catch(async (error) => {
      if (error.status !== 409) throw error;
      return ask(`question?rater=${encodeURIComponent(rater)}`);
    }), true);
  });

  const resume = () => act(present);

  for (const button of buttons) button.addEventListener("click", () => answer(Number(button.dataset.answer)));
  for (const id of ["undo", "back"]) of(id).addEventListener("click", undo);
  of("continue").addEventListener("click", resume);
  of("form").addEventListener("submit", (event) => {
    event.preventDefault();
    rater = of("rater").value;
    act(async () => {
      try {
        await refresh();
      } finally {
        if (state) rater = state.rater;
      }
      history.replaceState(null, "", `?rater=${encodeURIComponent(rater)}`);
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.target === of("rater")) return;
    if (document.body.dataset.view === "start") return;
    const key = event.key.toLowerCase();
    if (key === "backspace" || key === "u") {
      event.preventDefault();
      undo();
      return;
    }
    if (document.body.dataset.view !== "ask") return;
    const value = method === "pairs" ? { arrowleft: "0", arrowup: "0", arrowright: "1", arrowdown: "1" }[key] : key;
    const button = buttons.find(({ dataset }) => dataset.answer === value);
    if (!button) return;
    event.preventDefault();
    if (!button.disabled) answer(Number(value));
  });
  window.addEventListener("resize", refit);

  of("rater").value = new URLSearchParams(location.search).get("rater") || "";
  of("rater").focus();
})();
