import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // What needs Debian packages or a browser has scripts of its own: test:real, test:workbench, test:desktop.
    exclude: ["test/real/**", "test/workbench/**", "test/desktop/**", "**/node_modules/**"],
    testTimeout: 60_000,
  },
});
