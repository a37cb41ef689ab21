"use strict";
(() => {
  const limits = document.body.dataset;
  const TRIES = 5; // of a request that the server is too busy for
  const of = (id) => document.getElementById(id);
  const waiting = [];
  let [working, done, all] = [false, 0, 0];

  // Characters that a reader does not see, or that reorder a line, are shown by their numbers.
  const UNSEEN = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
  const showUnseen = (text) => text.replace(UNSEEN, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);

  // What came with the name of a file or from the server goes into the page as text, never as HTML.
  const say = (element, text) => {
    element.textContent = showUnseen(text);
    element.hidden = !text;
  };

  const showProgress = () => {
    say(of("status"), all ? `${done} of ${all} ${all === 1 ? "picture" : "pictures"} done` : "");
    of("clear").hidden = !all || working;
  };

  const add = (files) => {
    for (const file of files) {
      const card = of("card").content.firstElementChild.cloneNode(true);
      const [image, hint] = card.querySelectorAll("figure > *");
      say(card.querySelector("h2"), file.name);
      image.alt = showUnseen(file.name);
      image.onload = () => { image.hidden = false; hint.hidden = true; };
      image.onerror = () => { image.hidden = true; hint.hidden = false; };
      image.src = card.picture = URL.createObjectURL(file);
      of("cards").append(card);
      waiting.push([file, card]);
      all += 1;
    }
    work();
  };

  // One after another: the server computes one picture at a time.
  const work = async () => {
    if (working) return;
    working = true;
    showProgress();
    while (waiting.length) {
      const [file, card] = waiting.shift();
      card.dataset.state = "scoring";
      say(card.querySelector(".state"), "scoring …");
      try {
        const answer = await ask(file);
        if (answer.error) throw new Error(answer.error.replace(/^image 0: /, ""));
        show(card, file, answer);
        card.dataset.state = "scored";
      } catch (error) {
        say(card.querySelector(".failure"), error.message);
        card.dataset.state = "failed";
      }
      say(card.querySelector(".state"), "");
      done += 1;
      showProgress();
    }
    working = false;
    showProgress();
  };

  const base64 = (file) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("cannot be read; drop files, not folders"));
    reader.readAsDataURL(file);
  });

  const ask = async (file) => {
    if (file.size > limits.maxBytes) throw new Error(`over ${limits.maxBytes / 1e6} MB; send it smaller`);
    const image = file.size ? await base64(file) : "";
    const body = JSON.stringify({ image, name: file.name.slice(0, 255) });
    for (let tries = 1; ; tries += 1) {
      let answer;
      try {
        const signal = AbortSignal.timeout(1000 * (Number(limits.seconds) + 5));
        answer = await fetch("explain", { method: "POST", headers: { "content-type": "application/json" }, body, signal });
      } catch {
        throw new Error("the server does not answer; is it still running?");
      }
      if (answer.status === 503 && tries < TRIES) {
        await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(answer.headers.get("retry-after")) || 1)));
        continue;
      }
      return answer.json();
    }
  };

  const show = (card, file, answer) => {
    const find = (name) => card.querySelector(`.${name}`);
    const place = (value) => `${(100 * (value - answer.low)) / (answer.high - answer.low)}%`;
    say(find("value"), answer.score.toFixed(1));
    find("point").style.left = place(answer.score);
    const known = answer.interval_low !== null;
    find("band").hidden = !known;
    if (known) {
      find("band").style.left = place(answer.interval_low);
      find("band").style.right = `calc(100% - ${place(answer.interval_high)})`;
    }
    say(find("interval"), known
      ? `90 % interval: ${answer.interval_low.toFixed(1)} to ${answer.interval_high.toFixed(1)}`
      : "no interval: this model was fitted without one");
    say(find("warning"), answer.warning || "");
    say(find("suspect"), suspicion(answer.suspects));
    const [image, hint] = card.querySelectorAll("figure > *");
    const button = find("heat");
    button.setAttribute("aria-label", `Heat map of ${showUnseen(file.name)}`);
    button.onclick = () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      find("key").hidden = !on;
      image.src = on ? `data:image/png;base64,${answer.overlay}` : card.picture;
      image.alt = showUnseen(on ? `heat map of ${file.name}` : file.name);
    };
    find("result").hidden = false;
  };

  const suspicion = (suspects) => {
    if (!suspects) return "this model cannot name distortions";
    const [first, second] = suspects.filter(({ probability }, i) => !i || probability >= 0.05).map(({ distortion, level, probability }) =>
      `${distortion.replaceAll("_", " ")}${level ? `, level ${level}` : ""} (${Math.round(100 * probability)} %)`);
    return `looks like: ${first}${second ? `; else ${second}` : ""}`;
  };

  of("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
  of("clear").addEventListener("click", () => {
    for (const card of of("cards").children) URL.revokeObjectURL(card.picture);
    of("cards").replaceChildren();
    [done, all] = [0, 0];
    showProgress();
    of("files").focus();
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files);
  });
  // On the whole page: a picture that misses the box must not replace the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    of("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) of("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    of("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
})();
