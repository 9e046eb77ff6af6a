// The demo's page: uploads a picture, sends expressions, and draws the answers. It makes requests to its own server only.

const byId = (id) => document.getElementById(id);
const maxBytes = Number(document.body.dataset.maxBytes);
const HEAT = [255, 214, 10]; // the colour of heat maps in refseg's reports
const zoom = viewer.zoom(byId("figure"), byId("views"));

let picture = null; // {blob, name, source, id, shown: HTMLImageElement, answers: [answer]}
let arriving = null; // the upload in progress, for which questions wait
let current = null; // the answer that is shown
let newest = 0; // number of the last action: the result of an older one that finishes later is dropped

// ---- Requests

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; check that refseg demo still runs.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const error = new Error(typeof told.detail === "string" ? told.detail : `The server answered ${response.status}.`);
  error.status = response.status;
  throw error;
}

async function upload(blob, name) {
  const form = new FormData();
  form.append("file", blob, name);
  return (await call("/api/images", { method: "POST", body: form })).json();
}

async function ask(asked, text, maps) {
  const send = async () => {
    const body = JSON.stringify({ image_id: asked.id, text, maps });
    return (await call("/api/segment", { method: "POST", body, headers: { "Content-Type": "application/json" } })).json();
  };
  try {
    return await send();
  } catch (error) {
    if (error.status !== 404) throw error;
    await upload(asked.blob, asked.name); // the server keeps the last few pictures only
    return send();
  }
}

function load(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The server's picture cannot be shown."));
    image.src = source;
  });
}

// ---- Actions

async function begin(message, work) {
  const number = ++newest;
  byId("error").hidden = true;
  byId("status").textContent = message;
  document.body.setAttribute("aria-busy", "true");
  try {
    const done = await work(() => number === newest);
    if (number === newest) byId("status").textContent = done ?? "";
  } catch (error) {
    if (number !== newest) return;
    byId("status").textContent = "";
    const place = byId(error.isOfPicture ? "picture-error" : "error");
    place.textContent = error.message;
    place.hidden = false;
    place.scrollIntoView({ block: "nearest" });
  } finally {
    if (number === newest) document.body.removeAttribute("aria-busy");
  }
}

async function encode(blob, name, source) {
  if (blob.size > maxBytes) {
    const found = `${(blob.size / 1e6).toFixed(1)} MB, expected at most ${maxBytes / 1e6} MB`;
    throw new Error(`${name}: found ${found}; scale the picture down first`);
  }
  const told = await upload(blob, name);
  return { told, made: { blob, name, source, id: told.image_id, shown: await load(`/api/images/${told.image_id}`), answers: [] } };
}

async function takePicture(blob, name, source) {
  const own = encode(blob, name, source).catch((error) => {
    const kept = picture ? `${error.message.replace(/\.$/, "")}. ${picture.name} is still shown` : error.message;
    throw Object.assign(new Error(kept), { isOfPicture: true });
  });
  arriving = own;
  try {
    const { told, made } = await own;
    if (arriving !== own) return null; // another was chosen meanwhile
    put(made);
    byId("unlike").hidden = !told.unlike;
    byId("unlike").textContent = told.unlike ?? "";
    byId("name").textContent = `${name}, ${told.width} × ${told.height}`;
    return told.already_encoded ? "This picture was encoded before." : `Encoded in ${told.seconds.toFixed(2)} s.`;
  } finally {
    if (arriving === own) arriving = null;
  }
}

function choose(blob, name) {
  byId("picture-error").hidden = true; // a refusal stays until another picture is chosen
  return begin("Encoding the picture …", () => takePicture(blob, name, ""));
}

// `spoken` says of which words the text is left: {words, out: positions of those that were left out}.
async function find(text, isNewest, spoken) {
  if (arriving) await arriving;
  if (!picture) throw new Error("There is no picture yet; choose one, or take an example below.");
  if (!text.trim()) throw new Error("The expression is empty; enter a description such as: the woman in the red coat");
  const asked = picture;
  const answer = await ask(asked, text, false);
  answer.mask = await load(`data:image/png;base64,${answer.mask_png}`);
  answer.probability = await load(`data:image/png;base64,${answer.probability_png}`);
  if (!isNewest() || asked !== picture) return null;
  answer.spoken = spoken ?? { words: answer.text.trim().split(/\s+/), out: new Set() };
  answer.shape = shapeOf(answer.mask, asked.shown);
  asked.answers = asked.answers.filter((old) => old.text !== answer.text).concat(answer);
  show(answer);
  byId("frame").scrollIntoView({ block: "nearest" }); // on a phone it is above
  return `Answered in ${answer.seconds.toFixed(2)} s, from the encoded picture.`;
}

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) choose(file, file.name);
  event.target.value = ""; // the same file can be chosen again
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  begin("Looking …", (isNewest) => find(byId("text").value, isNewest));
});
for (const button of document.querySelectorAll("button.example")) {
  button.addEventListener("click", () => {
    const text = button.textContent;
    byId("picture-error").hidden = true;
    byId("text").value = text;
    begin("Encoding the picture …", async (isNewest) => {
      const source = button.dataset.picture;
      if (picture?.source !== source) {
        const blob = await (await call(source)).blob();
        if (!isNewest()) return null;
        await takePicture(blob, button.dataset.name, source);
        if (!isNewest()) return null;
      }
      return find(text, isNewest);
    });
    byId("picture-title").scrollIntoView();
  });
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", () => byId("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault(); // also beside the field, where the browser would open the file
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) choose(file, file.name);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) choose(file, file.name || "pasted.png");
});
byId("probability").addEventListener("change", draw);
byId("maps").addEventListener("toggle", showMaps);

// ---- Display

function put(made) {
  picture = made;
  current = null;
  byId("drop").classList.add("filled");
  byId("figure").hidden = false;
  for (const id of ["answer", "asked", "looked"]) byId(id).hidden = true;
  byId("views").hidden = false;
  byId("frame").style.aspectRatio = `${made.shown.naturalWidth} / ${made.shown.naturalHeight}`;
  draw();
  zoom.reset();
}

function show(answer) {
  current = answer;
  byId("answer").hidden = byId("looked").hidden = false;
  byId("answer-text").textContent = answer.text;
  byId("cut").hidden = !answer.is_cut;
  byId("cut").textContent = `The text is too long for the model, which read: ${answer.read_text}`;
  const [box, percent] = [answer.box_xywh, (share) => `${(100 * share).toFixed(1)} %`];
  const facts = {
    found: box ? `${percent(answer.covered_share)} of the picture` : "nothing: no pixel reaches the threshold",
    ...(box && { box: `${box[2]} × ${box[3]} pixels at ${box[0]}, ${box[1]}` }),
    "highest probability": `${percent(answer.highest_probability)} (object above ${percent(answer.threshold)})`,
  };
  const { words, out } = answer.spoken;
  const whole = picture.answers.find((other) => other.text === words.join(" "));
  if (out.size && whole) facts["IoU with all words"] = percent(overlap(answer.shape.mask, whole.shape.mask));
  byId("answer-facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  showSpoken(answer);
  showWords(answer);
  offer(byId("mask-file"), bytesOf(answer.mask_png), "image/png", `${fileStem(answer)}.mask.png`);
  offer(byId("rle-file"), JSON.stringify(answer.rle), "application/json", `${fileStem(answer)}.rle.json`);
  byId("maps").open = false;
  showAsked();
  draw();
}

function showSpoken(answer) {
  const { words, out } = answer.spoken;
  byId("spoken").replaceChildren(
    ...words.map((word, place) => {
      const button = element("button", word);
      button.type = "button";
      button.setAttribute("aria-pressed", String(!out.has(place)));
      button.disabled = words.length - out.size === 1 && !out.has(place); // one word has to stay
      button.addEventListener("click", () => {
        const others = new Set(out);
        if (!others.delete(place)) others.add(place);
        const text = words.filter((_, other) => !others.has(other)).join(" ");
        byId("text").value = text;
        begin("Looking …", async (isNewest) => {
          const done = await find(text, isNewest, { words, out: others });
          byId("spoken").children[place]?.focus(); // the buttons were replaced
          return done;
        });
      });
      return button;
    }),
  );
}

function overlap(one, other) {
  let both = 0, either = 0;
  for (let place = 0; place < one.length; place++) {
    both += one[place] & other[place];
    either += one[place] | other[place];
  }
  return either ? both / either : 1;
}

function showWords(answer) {
  for (const id of ["words", "words-title", "words-hint"]) byId(id).hidden = answer.words === null;
  byId("no-words").hidden = answer.words !== null;
  const most = Math.max(...(answer.words ?? []).map((word) => word.weight));
  const rows = (answer.words ?? []).map(({ word, weight }) => {
    const [row, name, cell, bar, track, fill] = ["tr", "th", "td", "div", "span", "i"].map((tag) => element(tag));
    name.scope = "row";
    name.textContent = word;
    bar.className = "bar";
    track.setAttribute("aria-hidden", "true");
    fill.style.width = `${(100 * weight) / most}%`;
    track.append(fill);
    bar.append(track, element("b", `${(100 * weight).toFixed(1)} %`));
    cell.append(bar);
    row.append(name, cell);
    return row;
  });
  byId("words").tBodies[0].replaceChildren(...rows);
}

async function showMaps() {
  const [answer, asked] = [current, picture];
  if (!byId("maps").open || !answer) return;
  const [note, image] = [byId("maps-note"), byId("maps-picture")];
  image.hidden = true;
  note.textContent = "Drawing …";
  try {
    answer.maps_png ??= (await ask(asked, answer.text, true)).maps_png;
    if (answer !== current) return;
    note.textContent = answer.maps_png
      ? "Yellow is high. Below a map of FCNet are the number and weight of its emphasis, and the words with the most attention."
      : "This model has no maps to show.";
    if (answer.maps_png) {
      image.src = `data:image/png;base64,${answer.maps_png}`;
      image.alt = `Where the model looked for “${answer.text}”: yellow is high`;
      image.hidden = false;
    }
  } catch (error) {
    note.textContent = error.message;
  }
}

function showAsked() {
  byId("asked").hidden = picture.answers.length < 2;
  byId("asked").querySelector("ol").replaceChildren(
    ...picture.answers.map((answer) => {
      const [item, button, text] = [element("li"), element("button"), element("span", answer.text)];
      button.append(text);
      button.type = "button";
      button.setAttribute("aria-pressed", String(answer === current));
      button.addEventListener("click", () => {
        const place = picture.answers.indexOf(answer);
        show(answer);
        byId("asked").querySelectorAll("button")[place].focus(); // the list was replaced
      });
      item.append(button);
      return item;
    }),
  );
}

function draw() {
  if (!picture) return;
  const canvas = byId("canvas");
  const { naturalWidth: width, naturalHeight: height } = picture.shown;
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture.shown, 0, 0);
  const isHeat = current !== null && byId("probability").checked;
  byId("scale").hidden = !isHeat;
  if (isHeat) {
    const pixels = pen.getImageData(0, 0, width, height);
    paintHeat(pixels.data, valuesOf(current.probability, width, height));
    pen.putImageData(pixels, 0, 0);
  }
  viewer.drawMasks(byId("masks"), { width, height }, current ? [{ kind: "prediction", ...current.shape }] : []);
  const shown = isHeat ? "The probability over the picture, and the mask, of" : "The picture with the mask of";
  const found = current?.box_xywh ? `${(100 * current.covered_share).toFixed(1)} % of it` : "nothing was found";
  canvas.setAttribute("aria-label", current ? `${shown} “${current.text}”: ${found}` : `The picture ${picture.name}`);
}

function shapeOf(image, { naturalWidth: width, naturalHeight: height }) {
  const values = valuesOf(image, width, height);
  return { mask: Uint8Array.from({ length: width * height }, (_, place) => (values[4 * place] > 127 ? 1 : 0)), width, height };
}

function valuesOf(image, width, height) {
  const canvas = element("canvas");
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, width, height);
  return pen.getImageData(0, 0, width, height).data; // grey: every fourth number
}

function paintHeat(pixels, values) {
  for (let place = 0; place < pixels.length; place += 4) {
    const grey = 0.7 * (0.299 * pixels[place] + 0.587 * pixels[place + 1] + 0.114 * pixels[place + 2]);
    pixels.fill(grey, place, place + 3);
    blend(pixels, place, HEAT, (0.8 * values[place]) / 255);
  }
}

function blend(pixels, place, colour, share) {
  for (let channel = 0; channel < 3; channel++) {
    pixels[place + channel] = (1 - share) * pixels[place + channel] + share * colour[channel];
  }
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function offer(link, content, type, name) {
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
}

function fileStem(answer) {
  const words = answer.text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return [picture.name.replace(/\.[^.]*$/, ""), ...words].join("-").slice(0, 80);
}
