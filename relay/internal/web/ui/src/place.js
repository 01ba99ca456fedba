// Where a page belongs: the relay may have names by which it serves pages, but lets nobody in.

/** rightPlace is this page's address at the relay's own name; "" when it is here, or not known. */
export async function rightPlace() {
  const r = await fetch(location.pathname, { method: "HEAD", cache: "no-store" }).catch(() => null);
  const at = /<([^>]+)>; rel="canonical"/.exec(r?.headers.get("Link"))?.[1];
  return at && new URL(at).origin !== location.origin ? at : "";
}
