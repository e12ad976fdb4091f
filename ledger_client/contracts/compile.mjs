// Compile Solidity files with npm's solc (WebAssembly) and print what they hold as one line of JSON a contract.
//
//     node compile.mjs --modules node_modules File.sol …  >  File.json
//
// Imports are looked up under --modules. Sources are named by their file names alone, so that the bytecode, which ends
// in a hash over names and sources, is the same on every machine. A warning is an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { parseArgs } from "node:util";

const SETTINGS = {
  // Paris is what every EVM chain runs: nothing here needs a later instruction.
  evmVersion: "paris",
  optimizer: { enabled: true, runs: 1000 },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
};

const { values, positionals } = parseArgs({ options: { modules: { type: "string" } }, allowPositionals: true });
const modules = resolve(values.modules);
const solc = createRequire(join(modules, "anything"))("solc");

const sources = Object.fromEntries(
  positionals.map((path) => [basename(path), { content: readFileSync(path, "utf8") }]),
);
const findImport = (name) => {
  try {
    return { contents: readFileSync(join(modules, name), "utf8") };
  } catch (error) {
    return { error: error.message };
  }
};
const input = { language: "Solidity", sources, settings: SETTINGS };
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));

const complaints = output.errors ?? [];
for (const complaint of complaints) console.error(complaint.formattedMessage);
if (complaints.length > 0) process.exit(1);

const { outputSelection, ...settings } = SETTINGS;
const compiled = [];
for (const file of Object.keys(sources)) {
  for (const [contract, { abi, evm }] of Object.entries(output.contracts[file])) {
    const bytecode = `0x${evm.bytecode.object}`;
    compiled.push({ contract, compiler: { solc: solc.version(), settings }, abi, bytecode });
  }
}
for (const contract of compiled) process.stdout.write(`${JSON.stringify(contract)}\n`);
