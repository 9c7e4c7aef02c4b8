// Reads an AsyncAPI document from standard input and writes the parser's diagnostics as JSON.
// Severity 0 is an error; the exit status is that of this program, not the document's.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const summary = diagnostics.map(({ severity, code, message, path }) => ({
  severity,
  code,
  message,
  path: path.join("."),
}));
process.stdout.write(JSON.stringify({ parsed: document !== undefined, diagnostics: summary }));
