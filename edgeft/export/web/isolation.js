/** Cross-origin isolation, which threads need: the server's headers give it, or else our service worker. */

const ONCE = "edgeft-isolating";

/** Why this page has one thread; empty where it has more. The page may be loaded again once on the way. */
export async function isolate() {
  if (crossOriginIsolated) {
    sessionStorage.removeItem(ONCE);
    return "";
  }
  if (!("serviceWorker" in navigator)) return "this browser has no service workers";
  try {
    await navigator.serviceWorker.register("isolate.js");
    await navigator.serviceWorker.ready;
  } catch (error) {
    return `its service worker was refused: ${error.message}`;
  }
  if (sessionStorage.getItem(ONCE)) return "this browser does not isolate it";
  sessionStorage.setItem(ONCE, "1");
  location.reload();
  return new Promise(() => {}); // this page ends here
}
