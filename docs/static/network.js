// The seed's network of 2, 3 and 1 neurons, live: every number of the backward pass follows each that is changed.

const ACTIVATIONS = {
  relu: [(z) => Math.max(0, z), (z) => (z > 0 ? 1 : 0)],
  tanh: [Math.tanh, (z) => 1 - Math.tanh(z) ** 2],
  sigmoid: [(z) => 1 / (1 + Math.exp(-z)), (z) => Math.exp(-z) / (1 + Math.exp(-z)) ** 2],
  identity: [(z) => z, () => 1],
};

const product = (A, B) => A.map((row) => B[0].map((_, j) => row.reduce((sum, a, k) => sum + a * B[k][j], 0)));
const transposed = (A) => A[0].map((_, j) => A.map((row) => row[j]));
const each = (f, ...arrays) => arrays[0].map((row, i) => row.map((_, j) => f(...arrays.map((A) => A[i][j]))));
const summed = (A) => A[0].map((_, j) => A.reduce((sum, row) => sum + row[j], 0));

// Everything that follows from X, y, W, b and the hidden activation g.
function sweep({ X, y, W1, b1, W2, b2, g }) {
  const [value, slope] = ACTIVATIONS[g];
  const N = X.length;
  const Z1 = product(X, transposed(W1)).map((row) => row.map((z, j) => z + b1[j]));
  const A1 = each(value, Z1);
  const Z2 = product(A1, transposed(W2)).map((row) => row.map((z, j) => z + b2[j]));
  const A2 = Z2;
  const J = A2.reduce((sum, row, i) => sum + (row[0] - y[i][0]) ** 2 / 2, 0) / N;
  const dA2 = each((a, t) => (a - t) / N, A2, y);
  const dZ2 = dA2;
  const dW2 = product(transposed(dZ2), A1);
  const dA1 = product(dZ2, W2);
  const dZ1 = each((d, z) => d * slope(z), dA1, Z1);
  const dW1 = product(transposed(dZ1), X);
  const dA0 = product(dZ1, W1);
  return { Z1, A1, Z2, A2, J, dA2, dZ2, dW2, db2: summed(dZ2), dA1, dZ1, dW1, db1: summed(dZ1), dA0 };
}

function stepped(network) {
  const { dW1, db1, dW2, db2 } = sweep(network);
  const less = (v, d) => v - network.alpha * d;
  const row = (b, db) => b.map((v, j) => less(v, db[j]));
  return {
    ...network,
    W1: each(less, network.W1, dW1),
    b1: row(network.b1, db1),
    W2: each(less, network.W2, dW2),
    b2: row(network.b2, db2),
  };
}

const shown = (v) => (Math.abs(v) < 1e-12 ? "0" : String(Number(v.toPrecision(5)))).replace("-", "−");
const rows = (V) => (Array.isArray(V) ? (Array.isArray(V[0]) ? V : [V]) : [[V]]);

// Rows of the table: a symbol, and the symbol of its cotangent; those in GIVEN can be changed.
const LAYERS = [
  ["X", "dA0"],
  ["W1", "dW1"],
  ["b1", "db1"],
  ["Z1", "dZ1"],
  ["A1", "dA1"],
  ["W2", "dW2"],
  ["b2", "db2"],
  ["Z2", "dZ2"],
  ["A2", "dA2"],
  ["y", null],
  ["J", null],
];
const GIVEN = new Set(["X", "y", "W1", "b1", "W2", "b2"]);

function start(root, first) {
  let network = structuredClone(first);
  const cells = new Map();

  const symbol = (name) => {
    const [, letters, layer] = name.match(/^([A-Za-z]+)(\d?)$/);
    return layer ? `<i>${letters}</i><sup>[${layer}]</sup>` : `<i>${letters}</i>`;
  };
  const matrix = (name) => {
    const table = document.createElement("table");
    table.className = "matrix";
    table.setAttribute("aria-label", name);
    const value = GIVEN.has(name) ? network[name] : sweep(network)[name];
    rows(value).forEach((row, i) => {
      const line = table.insertRow();
      row.forEach((_, j) => {
        const cell = line.insertCell();
        if (GIVEN.has(name)) {
          const input = document.createElement("input");
          Object.assign(input, { type: "number", step: "0.1", inputMode: "decimal" });
          input.setAttribute("aria-label", `${name}, row ${i + 1}, column ${j + 1}`);
          input.addEventListener("input", () => {
            if (input.value === "" || !Number.isFinite(Number(input.value))) return;
            rows(network[name])[i][j] = Number(input.value);
            show(input);
          });
          cell.append(input);
        }
        cells.set(`${name} ${i} ${j}`, cell);
      });
    });
    return table;
  };
  const show = (typed) => {
    const all = { ...network, ...sweep(network) };
    for (const [key, cell] of cells) {
      const [name, i, j] = key.split(" ");
      const text = shown(rows(all[name])[i][j]);
      const input = cell.querySelector("input");
      if (input) {
        if (input !== typed) input.value = Number(rows(all[name])[i][j].toPrecision(5));
        continue;
      }
      cell.classList.toggle("changed", cell.textContent !== "" && cell.textContent !== text);
      cell.textContent = text;
    }
  };

  const table = document.createElement("table");
  table.className = "quantities";
  for (const [name, cotangent] of LAYERS) {
    const line = table.insertRow();
    line.insertCell().innerHTML = symbol(name);
    line.insertCell().append(matrix(name));
    line.insertCell().innerHTML = cotangent ? symbol(cotangent) : "";
    if (cotangent) line.insertCell().append(matrix(cotangent));
    else line.insertCell();
  }

  const controls = document.createElement("p");
  const button = (text, does) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => {
      does();
      show();
    });
    return made;
  };
  const choice = document.createElement("select");
  for (const name of Object.keys(ACTIVATIONS)) choice.add(new Option(name, name, false, name === network.g));
  choice.addEventListener("change", () => {
    network.g = choice.value;
    show();
  });
  const label = document.createElement("label");
  label.append(`${root.dataset.activation} `, choice);
  controls.append(
    button(root.dataset.step, () => (network = stepped(network))),
    button(root.dataset.again, () => {
      network = structuredClone(first);
      choice.value = network.g;
    }),
    label,
  );
  root.replaceChildren(controls, table);
  show();
}

if (typeof module === "undefined") start(document.getElementById("network"), NETWORK);
else module.exports = { sweep, stepped };
