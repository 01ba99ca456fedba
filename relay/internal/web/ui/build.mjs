// Bundles every page of src (NAME.html with its NAME.js) into ../dist, with names
// that hold a hash of the content, each file also compressed, and says how large
// each page is. Run by scripts/build.
import { build } from "esbuild";
import { readFile, writeFile, readdir, mkdir, rm, access } from "node:fs/promises";
import { gzipSync, constants } from "node:zlib";
import path from "node:path";

const src = "src", dist = "../dist", base = "/_adit/ui/";
await mkdir(dist, { recursive: true });

const pages = [];
for (const file of (await readdir(src)).sort()) {
  const name = path.basename(file, ".html");
  if (file.endsWith(".html") && await access(path.join(src, name + ".js")).then(() => true, () => false)) pages.push(name);
}

const result = await build({
  entryPoints: [...pages.map((name) => path.join(src, name + ".js")), path.join(src, "icon.svg")],
  outdir: dist, bundle: true, minify: true, format: "esm", target: ["es2022"], charset: "utf8",
  entryNames: "[name]-[hash]", assetNames: "[name]-[hash]", loader: { ".svg": "copy" },
  legalComments: "none", metafile: true, write: false, logLevel: "warning",
});
const files = new Map(result.outputFiles.map((f) => [path.basename(f.path), Buffer.from(f.contents)]));
const find = (name, ext) => [...files.keys()].find((f) => f.startsWith(name + "-") && f.length === name.length + 9 + ext.length && f.endsWith(ext)) ?? "";

const written = new Set([".keep", ".stamp"]);
const zip = (data) => gzipSync(data, { level: constants.Z_BEST_COMPRESSION });
const put = async (name, data) => {
  await writeFile(path.join(dist, name), data);
  await writeFile(path.join(dist, name + ".gz"), zip(data));
  written.add(name).add(name + ".gz");
};
for (const [name, data] of files) await put(name, data);

const kib = (n) => (n / 1024).toFixed(1).padStart(7);
for (const name of pages) {
  const parts = { script: find(name, ".js"), style: find(name, ".css"), icon: find("icon", ".svg") };
  let html = await readFile(path.join(src, name + ".html"), "utf8");
  html = html.replace(/\{\{(\w+)\}\}/g, (_, key) => {
    if (!parts[key]) throw new Error(`${name}.html: nothing to put in for {{${key}}}`);
    return base + parts[key];
  });
  const all = [Buffer.from(html), files.get(parts.script), files.get(parts.style)].filter(Boolean);
  const sum = (f) => all.reduce((n, b) => n + f(b), 0);
  await put(name + ".html", Buffer.from(html));
  console.error(`web: /${name} ${kib(sum((b) => b.length))} KiB, ${kib(sum((b) => zip(b).length))} KiB compressed`);
}
for (const old of await readdir(dist)) if (!written.has(old)) await rm(path.join(dist, old), { recursive: true });
