// The page: takes an image in any of four ways, asks the network, shows the answer.

import { InferenceSession, Tensor, env } from "./onnxruntime-web/ort.js";
import { ImageError, nameOf, openImage } from "./image.js";
import { preprocess, target } from "./preprocess.js";

const TOP = 5;
const DARK = 166; // of 255, as style.css has it for what the network is not shown
const find = (id) => document.getElementById(id);

env.wasm.numThreads = 1; // more need headers that not every host sends
env.wasm.wasmPaths = { wasm: new URL("onnxruntime-web/ort.wasm", import.meta.url).href };

function tell(text, wrong = false) {
  find("status").textContent = text;
  find("status").classList.toggle("wrong", wrong);
}

async function get(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** What network.json says, and the network as a function from its input to its outputs. */
async function load() {
  const [about, model] = await Promise.all([
    get("network.json").then((answer) => answer.json()),
    get("model.onnx").then((answer) => answer.arrayBuffer()),
  ]);
  const session = await InferenceSession.create(model, { executionProviders: ["wasm"] });
  const { size } = about.preprocess;
  const run = async (input) => {
    const said = await session.run({ [session.inputNames[0]]: new Tensor("float32", input, [1, 3, size, size]) });
    return { logits: said.logits.data, heads: said.heads, attention: said[session.outputNames.at(-1)] };
  };
  await run(new Float32Array(3 * size * size)); // the first run is slow
  find("about").textContent = `${about.model}, ${size} x ${size} pixels, ${about.classes.length} classes. `
    + "Whatever an image shows, the answer is one of these:";
  find("classes").textContent = about.classes.join(", ");
  tell("Ready.");
  return { about, run };
}

/** The likeliest classes, likeliest first: [name, probability]. */
function likeliest(logits, names) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const shares = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = shares.reduce((a, b) => a + b, 0);
  return names.map((name, i) => [name, shares[i] / sum]).sort((a, b) => b[1] - a[1]).slice(0, TOP);
}

/** How many of several heads say the same as all together, as a sentence. */
function agreement(heads, logits) {
  if (!heads) return "";
  const [, count, classes] = heads.dims;
  const likely = (from) => Array.from(from).reduce((best, one, i, all) => (one > all[best] ? i : best), 0);
  const said = likely(logits);
  const agree = Array.from({ length: count }, (_, k) => likely(heads.data.subarray(k * classes, (k + 1) * classes)))
    .filter((one) => one === said).length;
  return ` ${agree} of ${count} heads say so by themselves.`;
}

/** What the class token gathers from each place, the mean over the attention's heads: [rows x columns]. */
function looked({ data, dims: [, heads, asking, tokens] }, [prefix, rows, columns]) {
  return Float32Array.from({ length: rows * columns }, (_, place) => {
    let sum = 0;
    for (let head = 0; head < heads; head += 1) sum += data[head * asking * tokens + prefix + place];
    return sum / heads;
  });
}

/** Darkens the image where the map is low; the network is shown a square in its middle, or around it. */
function drawMap(values, [, rows, columns], image, about) {
  const canvas = find("map");
  Object.assign(canvas, { width: columns, height: rows });
  const most = values.reduce((a, b) => Math.max(a, b), 1e-12);
  const pixels = new ImageData(columns, rows);
  values.forEach((value, place) => { pixels.data[4 * place + 3] = DARK * (1 - Math.sqrt(value / most)); });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const { naturalWidth: width, naturalHeight: height } = image;
  const [across, down] = target(width, height, about).map((length) => about.size / length);
  const share = (length) => `${(100 * length).toFixed(2)}%`;
  Object.assign(canvas.style, {
    width: share(across), height: share(down), left: share((1 - across) / 2), top: share((1 - down) / 2),
  });
}

const percent = (probability) => `${(100 * probability).toFixed(1)}%`;

function element(kind, { text = "", ...rest }, ...children) {
  const made = Object.assign(document.createElement(kind), rest);
  made.append(text, ...children);
  return made;
}

function show(answers, image) {
  URL.revokeObjectURL(find("image").src);
  image.id = "image";
  find("image").replaceWith(image);
  find("answers").replaceChildren(...answers.map(([name, probability]) => {
    const filled = element("span", {});
    filled.style.width = percent(probability);
    return element("li", {},
      element("span", { className: "name", text: name }),
      element("data", { value: probability, text: percent(probability) }),
      element("span", { className: "bar", ariaHidden: "true" }, filled));
  }));
  find("result").hidden = false;
}

async function answer(file, others, { about, run }) {
  tell(`Looking at ${nameOf(file)} …`);
  find("result").hidden = true;
  await new Promise((painted) => setTimeout(painted)); // so that this is seen
  try {
    const began = performance.now();
    const { image, bitmap } = await openImage(file, about.limits);
    const input = preprocess(bitmap, about.preprocess);
    bitmap.close();
    const { logits, heads, attention } = await run(input);
    const took = performance.now() - began;
    const answers = likeliest(logits, about.classes);
    show(answers, image);
    if (about.grid) {
      drawMap(looked(attention, about.grid), about.grid, image, about.preprocess);
      find("looked").hidden = false;
    }
    tell(`${nameOf(file)}: ${answers[0][0]}, ${percent(answers[0][1])}.${agreement(heads, logits)} `
      + `Answered in ${took.toFixed(0)} ms.`
      + (others ? ` It is the first of ${others + 1} files; give one at a time.` : ""));
  } catch (error) {
    tell(error instanceof ImageError ? error.message : `${nameOf(file)}: ${error.message || error}`, true);
  }
}

const network = load();
network.catch((error) => tell(`The network could not be loaded: ${error.message || error}`, true));
let turn = network;

/** One image after the other; of several at once the first. */
function ask(files) {
  const file = files[0];
  if (!file) return tell("No image in it: save the image as a file, and choose that.", true);
  turn = Promise.all([network, turn]).then(([loaded]) => answer(file, files.length - 1, loaded));
  turn.catch(() => {}); // said already
}

find("look").addEventListener("change", ({ target }) => { find("map").hidden = !target.checked; });

for (const id of ["choose", "take"]) {
  find(id).addEventListener("change", ({ target }) => {
    if (target.files.length) ask([...target.files]);
    target.value = ""; // the same file may be chosen again
  });
}
document.addEventListener("paste", (event) => ask([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => document.body.classList.remove("dropping"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  ask([...event.dataTransfer.files]);
});
