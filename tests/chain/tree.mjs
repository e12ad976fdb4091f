// Read JSON lines [[address, units], …], and print for each what OpenZeppelin's tree over them is: its dump and every proof.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { StandardMerkleTree } = createRequire(join(process.argv[2], "anything"))("@openzeppelin/merkle-tree");

for await (const line of createInterface({ input: process.stdin })) {
  const tree = StandardMerkleTree.of(JSON.parse(line), ["address", "uint256"]);
  StandardMerkleTree.load(tree.dump()).validate();
  const proofs = [...tree.entries()].map(([index, value]) => [value[0], tree.getProof(index)]);
  console.log(JSON.stringify({ root: tree.root, dump: tree.dump(), proofs: Object.fromEntries(proofs) }));
}
