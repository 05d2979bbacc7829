/**
 * A service worker that adds the headers which threads need, since any static server should do.
 * https://web.dev/articles/coop-coep; and one that forbids every address but the page's own.
 */
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy": 
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'",
};

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(answer(event.request));
});

async function answer(request) {
  const given = await fetch(request);
  if (given.status === 0 || given.redirected) return given;
  const headers = new Headers(given.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(given.body, { status: given.status, statusText: given.statusText, headers });
}
