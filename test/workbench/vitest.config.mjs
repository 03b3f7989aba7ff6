import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/workbench/**/*.test.ts"],
    testTimeout: 240_000,
    hookTimeout: 240_000,
    // One browser and one server at a time.
    fileParallelism: false,
  },
});
