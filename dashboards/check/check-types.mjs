// Checks dashboards against Grafana's own types with tsc: node check-types.mjs FILE.json...
// A dashboard becomes a TypeScript constant; panels are checked with the options of their own plugin, and options of one
// that is not known here are an error. Enums of the schema are written as their values, since JSON has nothing else.
import { readFileSync, writeFileSync, mkdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const HERE = dirname(fileURLToPath(import.meta.url));
const PLUGINS = ['heatmap', 'stat', 'statetimeline', 'table', 'timeseries'];
const NAMES = { 'state-timeline': 'statetimeline' };
const WITHOUT_FIELDS = ['stat']; // plugins whose fields have no options of their own

const HEAD = `
import type * as dash from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
${PLUGINS.map((p) => `import type * as ${p} from '@grafana/schema/dist/types/raw/composable/${p}/panelcfg/x/types.gen';`).join('\n')}
type Plain<T> = T extends string ? T | \`\${T}\` : T extends number ? T : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Target = { refId: string; datasource: { type: 'influxdb'; uid: string }; query: string; rawQuery: true;
  resultFormat: 'time_series' | 'table'; alias?: string };
type Custom<F> = Omit<dash.FieldConfigSource, 'defaults'> & { defaults: Omit<dash.FieldConfig, 'custom'> & { custom?: Partial<F> } };
type Panel<O, F, N extends string> = Plain<Omit<dash.Panel, 'options' | 'fieldConfig' | 'targets' | 'type'>
  & { options: O; fieldConfig: Custom<F>; targets: Target[] }> & { type: N };
type Board = Plain<Omit<dash.Dashboard, 'panels'>>;
`;

function source(board) {
  const { panels, ...rest } = board;
  const lines = [HEAD, `export const board: Board = ${JSON.stringify(rest, null, 1)};`];
  panels.forEach((panel, i) => {
    const plugin = NAMES[panel.type] ?? panel.type;
    const known = PLUGINS.includes(plugin);
    const fields = WITHOUT_FIELDS.includes(plugin) ? 'Record<string, never>' : `${plugin}.FieldConfig`;
    const type = known ? `Panel<${plugin}.Options, ${fields}, '${panel.type}'>` : `never /* ${panel.type} */`;
    lines.push(`export const panel${i}: ${type} = ${JSON.stringify(panel, null, 1)};`);
  });
  return lines.join('\n');
}

mkdirSync(join(HERE, 'build'), { recursive: true });
const files = process.argv.slice(2).map((file) => {
  const path = join(HERE, 'build', `${basename(file, '.json')}.ts`);
  writeFileSync(path, source(JSON.parse(readFileSync(file, 'utf8'))));
  return path;
});
const program = ts.createProgram(files, {
  strict: true, noEmit: true, skipLibCheck: true, types: [], target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Node10, exactOptionalPropertyTypes: false,
});
const found = ts.getPreEmitDiagnostics(program);
for (const one of found) {
  const at = one.file ? `${basename(one.file.fileName)}:${one.file.getLineAndCharacterOfPosition(one.start).line + 1}` : '';
  console.log(`${at} ${ts.flattenDiagnosticMessageText(one.messageText, '\n')}`);
}
process.exit(found.length ? 1 : 0);
