"use strict";
(() => {
  const limits = document.body.dataset;
  const TRIES = 5; // of a request that the server is too busy for
  const of = (id) => document.getElementById(id);
  const waiting = [];
  let [working, done, all, strangers] = [false, 0, 0, 0];
  const rows = []; // of the CSV, in the order in which they were scored
  const pair = []; // cards to compare, at most two, left and right

  // Characters that a reader does not see, or that reorder a line, are shown by their numbers.
  const UNSEEN = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
  const showUnseen = (text) => text.replace(UNSEEN, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);

  // What came with the name of a file or from the server goes into the page as text, never as HTML.
  const say = (element, text) => {
    element.textContent = showUnseen(text);
    element.hidden = !text;
  };

  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  const showProgress = () => {
    const left = strangers ? `; ${count(strangers, "other file")} left out` : "";
    say(of("status"), all || strangers ? `${done} of ${count(all, "picture")} done${left}` : "");
    of("clear").hidden = !(all || strangers) || working;
    of("copy").hidden = !rows.length;
  };

  // Of a folder; single files are sent whatever they are, and the server says what is wrong with them.
  const KNOWN = /\.(avif|bmp|gif|heic|j2k|jfif|jp2|jpe?g|p[bgp]m|png|pnm|qoi|tiff?|webp)$/i;
  const addFolder = (files) => {
    const pictures = files.filter(({ name }) => KNOWN.test(name) && !name.startsWith("."));
    strangers += files.length - pictures.length;
    add(pictures.sort((a, b) => pathOf(a).localeCompare(pathOf(b), undefined, { numeric: true })));
  };

  const pathOf = (file) => file.path || file.webkitRelativePath || file.name;

  // Everything below an entry that was dropped. A folder is read in pieces, until an empty one comes.
  const filesOf = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      file.path = entry.fullPath.replace(/^\//, "");
      return [file];
    }
    const [reader, files] = [entry.createReader(), []];
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!entries.length) return files;
      for (const inner of entries) files.push(...await filesOf(inner));
    }
  };

  const add = (files) => {
    for (const file of files) {
      const card = of("card").content.firstElementChild.cloneNode(true);
      const [image, hint] = card.querySelectorAll("figure > *");
      card.name = pathOf(file);
      say(card.querySelector("h2"), card.name);
      image.alt = showUnseen(card.name);
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
        show(card, answer);
        rows.push({ ...answer, name: card.name });
        card.dataset.state = "scored";
      } catch (error) {
        say(card.querySelector(".failure"), error.message);
        rows.push({ name: card.name, error: error.message });
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

  const show = (card, answer) => {
    const find = (name) => card.querySelector(`.${name}`);
    const place = (value) => `${(100 * (value - answer.low)) / (answer.high - answer.low)}%`;
    say(find("value"), answer.score.toFixed(1));
    find("point").style.left = place(answer.score);
    const hasInterval = answer.interval_low !== null;
    find("band").hidden = !hasInterval;
    if (hasInterval) {
      find("band").style.left = place(answer.interval_low);
      find("band").style.right = `calc(100% - ${place(answer.interval_high)})`;
    }
    say(find("interval"), hasInterval
      ? `90 % interval: ${answer.interval_low.toFixed(1)} to ${answer.interval_high.toFixed(1)}`
      : "no interval: this model was fitted without one");
    say(find("warning"), answer.warning || "");
    say(find("suspect"), suspicion(answer.suspects));
    const [image, hint] = card.querySelectorAll("figure > *");
    const button = find("heat");
    button.setAttribute("aria-label", `Heat map of ${showUnseen(card.name)}`);
    card.overlay = `data:image/png;base64,${answer.overlay}`;
    card.score = answer.score;
    const box = find("compare");
    box.setAttribute("aria-label", `Compare ${showUnseen(card.name)}`);
    box.onchange = () => choose(card, box.checked);
    button.onclick = () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      find("key").hidden = !on;
      image.src = on ? card.overlay : card.picture;
      image.alt = showUnseen(on ? `heat map of ${card.name}` : card.name);
    };
    find("result").hidden = false;
  };

  // The third picture that is chosen takes the place of the first.
  const choose = (card, on) => {
    if (on) pair.push(card); else pair.splice(pair.indexOf(card), 1);
    if (pair.length > 2) pair.shift().querySelector(".compare").checked = false;
    compare();
    if (on && pair.length === 2) of("comparison").scrollIntoView({ block: "nearest" });
  };

  const cut = () => { of("pair").lastChild.style.clipPath = `inset(0 0 0 ${of("boundary").value}%)`; };

  const compare = () => {
    of("comparison").hidden = pair.length < 2;
    of("pair").replaceChildren();
    if (pair.length < 2) return;
    const heats = of("heats").getAttribute("aria-pressed") === "true";
    for (const card of pair) {
      const image = new Image();
      image.alt = showUnseen(`${heats ? "heat map of " : ""}${card.name}`);
      image.onerror = () => { image.onerror = null; image.src = card.overlay; }; // a format that this browser lacks
      image.src = heats ? card.overlay : card.picture;
      of("pair").append(image);
    }
    cut();
    of("comparison").querySelector(".key").hidden = !heats;
    const [a, b] = pair.map(({ score }) => score);
    const verdict = Math.abs(a - b) < 0.05 ? "the same score" : `${a > b ? "left" : "right"} is better by ${Math.abs(a - b).toFixed(1)}`;
    say(of("difference"), `left: ${pair[0].name}, ${a.toFixed(1)}; right: ${pair[1].name}, ${b.toFixed(1)}; ${verdict}`);
  };

  const COLUMNS = ["name", "score", "interval_low", "interval_high", "model", "labels", "distance", "warning", "fault", "error"];

  // A spreadsheet takes no cell for a formula.
  const cell = (value) => {
    const text = typeof value === "string" ? showUnseen(value) : String(value ?? "");
    return `"${(typeof value === "string" && /^\s*[=+\-@]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  };

  const csv = () => [COLUMNS, ...rows.map((row) => {
    const fault = row.suspects ? row.suspects[0].distortion : "";
    return COLUMNS.map((column) => (column === "fault" ? fault : row[column]));
  })].map((line) => line.map(cell).join(",")).join("\n") + "\n";

  const copy = async () => {
    try {
      await navigator.clipboard.writeText(csv());
      say(of("status"), `${count(rows.length, "row")} copied`);
    } catch {
      say(of("status"), "this browser does not let the page copy; open it as localhost, or by https");
    }
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
  of("folder").addEventListener("change", (event) => {
    addFolder([...event.target.files]);
    event.target.value = "";
  });
  of("copy").addEventListener("click", copy);
  of("boundary").addEventListener("input", cut);
  of("heats").addEventListener("click", () => {
    of("heats").setAttribute("aria-pressed", of("heats").getAttribute("aria-pressed") !== "true");
    compare();
  });
  of("clear").addEventListener("click", () => {
    for (const card of of("cards").children) URL.revokeObjectURL(card.picture);
    of("cards").replaceChildren();
    [done, all, strangers] = [0, 0, 0];
    [rows.length, pair.length] = [0, 0];
    compare();
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
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    of("drop").classList.remove("over");
    // Entries are gone after the first wait; files alone, as another program drops them, have none.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.some(({ isDirectory }) => isDirectory)) {
      add(event.dataTransfer.files);
      return;
    }
    try {
      addFolder((await Promise.all(entries.map(filesOf))).flat());
    } catch (error) {
      say(of("status"), `a folder cannot be read (${error.message}); choose it with the button`);
    }
  });
})();
