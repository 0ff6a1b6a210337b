// Unpacks the request records of a "records" event.
//
// Records that have the same names with values of the same types are rows of one table, an array of: names, a letter
// of a type for each, the number of rows, the numbers, the others, the rows. Numbers are 8 bytes each,
// little-endian, row after row: "i" integers, "f" floats, "b" flags. Texts ("s") and lists ("l") are a msgpack array
// of rows. "rows" are the records' numbers in the batch, 4 bytes each, or null if they are 0, 1, 2 ...

import { decode } from "@msgpack/msgpack";

const NUMBERS = "ifb";

// Return the event with its metrics and fields by name: {values, and rows if not every record has one,
// and lengths for lists, whose values follow one another}.
export function plainRecords(event) {
  return {
    ...event,
    metrics: columns(event.metrics, event.count),
    fields: columns(event.fields, event.count),
    errors: event.errors.map(([row, type, message, code]) => ({ row, type, message, code })),
  };
}

// Return what some tables have, by name.
function columns(tables, count) {
  const pieces = new Map(); // by name: [{type, cells: [[row, value], ...]}]
  for (const table of tables.map(readTable)) {
    table.names.forEach((name, place) => {
      const cells = table.rows.map((row, i) => [row, table.cells[i][place]]);
      pieces.set(name, [...(pieces.get(name) ?? []), { type: table.types[place], cells }]);
    });
  }
  return Object.fromEntries([...pieces].map(([name, parts]) => [name, column(parts, count)]));
}

// Put together what several tables have of one name: numbers, if there are some, before texts and lists.
function column(parts, count) {
  const type = [..."filbs"].find((letter) => parts.some((part) => part.type === letter));
  const fits = (letter) => (NUMBERS.includes(type) ? NUMBERS.includes(letter) : letter === type);
  const cells = parts.filter((part) => fits(part.type)).flatMap((part) =>
    part.cells.map(([row, value]) => [row, convert(value, part.type, type)]),
  );
  cells.sort((a, b) => a[0] - b[0]);
  const values = cells.map(([, value]) => value);
  const result = { values: type === "l" ? values.flat() : values };
  if (cells.length < count) result.rows = cells.map(([row]) => row);
  if (type === "l") result.lengths = values.map((list) => list.length);
  return result;
}

// Return a value as the type that its column has in the end.
function convert(value, from, to) {
  if (from === to) return value;
  if (to === "f") return Number(value);
  return from === "b" ? BigInt(value) : value;
}

function readTable([names, types, count, numbers, others, rows]) {
  const width = [...types].filter((letter) => NUMBERS.includes(letter)).length;
  const view = new DataView(numbers.buffer, numbers.byteOffset, numbers.byteLength);
  const rest = others.length ? decode(others, { useBigInt64: true }) : [];
  const cell = (row, place) => {
    const at = 8 * (row * width + place);
    if (types[place] === "f") return view.getFloat64(at, true);
    const number = view.getBigInt64(at, true);
    return types[place] === "b" ? number !== 0n : number;
  };
  const cells = Array.from({ length: count }, (_, row) => [
    ...Array.from({ length: width }, (_, place) => cell(row, place)),
    ...(rest[row] ?? []),
  ]);
  return { names, types, cells, rows: rows === null ? cells.map((_, i) => i) : u32s(rows) };
}

function u32s(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
}

// Like JSON.stringify, but an integer of 64 bits keeps all its digits; a float that is no number becomes null.
export function toJson(value) {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) return `[${value.map(toJson).join(",")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}:${toJson(item)}`).join(",")}}`;
  }
  // A float beyond 2^53 must not look like an integer with digits that it does not have.
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) return value.toExponential();
  return JSON.stringify(value);
}
