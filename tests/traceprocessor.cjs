// Perfetto's trace_processor as its user interface runs it, compiled to WebAssembly:
// requests from stdin, replies to stdout. The argument is the directory that has it.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const directory = process.argv[2];

// It is made for a worker of a browser, which fetches it so.
class XMLHttpRequest {
  open(method, url) {
    this.file = path.join(directory, path.basename(url));
  }
  send() {
    this.response = fs.readFileSync(this.file);
  }
}

const scope = {
  TextDecoder,
  TextEncoder,
  URL,
  XMLHttpRequest,
  WorkerGlobalScope: class {},
  console: { log: console.error, warn: console.error, error: console.error },
  location: { href: "https://localhost/" },
  performance,
};
scope.self = scope;
vm.createContext(scope);
const bundle = path.join(directory, "engine_bundle.js");
vm.runInContext(fs.readFileSync(bundle, "utf8"), scope, { filename: bundle });

const Bytes = vm.runInContext("Uint8Array", scope);
const port = { postMessage: (bytes) => fs.writeSync(1, bytes) };
scope.onmessage({ data: port });
setImmediate(() => {
  process.stdin.on("data", (bytes) => port.onmessage({ data: Bytes.from(bytes) }));
});
