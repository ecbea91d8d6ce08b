// Bundles render.jsx for a browser into build/render.js.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const HERE = dirname(fileURLToPath(import.meta.url));
// Its CommonJS default export is not what an ES module of @grafana/ui asks for.
const scrollbars = {
  name: 'scrollbars',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^react-custom-scrollbars-2$/ }, (args) => (args.namespace === 'shim' || args.pluginData === 'real'
      ? undefined : { path: args.path, namespace: 'shim' }));
    onLoad({ filter: /.*/, namespace: 'shim' }, async () => ({
      contents: `const all = require(${JSON.stringify(join(HERE, 'node_modules/react-custom-scrollbars-2/lib/index.js'))});
        export const Scrollbars = all.Scrollbars; export default all.Scrollbars;`,
      resolveDir: HERE,
    }));
  },
};
await build({
  entryPoints: [join(HERE, 'render.jsx')], outfile: join(HERE, 'build', 'render.js'), bundle: true, format: 'iife',
  platform: 'browser', plugins: [scrollbars], logLevel: 'error', minify: true,
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: { '.svg': 'dataurl', '.png': 'dataurl', '.woff2': 'dataurl', '.woff': 'dataurl', '.ttf': 'dataurl' },
});
