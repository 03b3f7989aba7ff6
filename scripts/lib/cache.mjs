// Where downloads live: outside the checkout, shared by all checkouts of one user.
import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/**
 * A folder of the cache, made when it is missing. HYPERSTEP_CACHE moves the cache; otherwise it is
 * $XDG_CACHE_HOME/hyperstep or ~/.cache/hyperstep.
 *
 * @param {...string} parts
 */
export function cacheFolder(...parts) {
  const root =
    process.env.HYPERSTEP_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "hyperstep");
  const folder = join(root, ...parts);
  mkdirSync(folder, { recursive: true });
  return folder;
}
