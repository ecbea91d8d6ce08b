// Renders panels of dashboards with Grafana's own components. `window.PANELS` holds what the test put there: panels as
// they are committed, each with what a real influxd answered to its query.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { MemoryRouter } from 'react-router-dom';
import {
  applyFieldOverrides, createTheme, dateTime, FieldType, getFieldDisplayValues, Registry, standardTransformers,
  standardTransformersRegistry, ThemeContext, toDataFrame, transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';

const theme = createTheme({ colors: { mode: 'dark' } });
const PLAIN = ['unit', 'decimals', 'min', 'max', 'displayName', 'noValue', 'thresholds', 'mappings', 'color', 'links'];
const CUSTOM = ['cellOptions', 'width', 'drawStyle', 'lineWidth', 'showPoints', 'pointSize', 'fillBelowTo', 'fillOpacity',
  'insertNulls', 'spanNulls'];
const entry = (id, path, isCustom) => ({
  id, path, isCustom, name: id, editor: () => null, override: () => null, process: (value) => value, shouldApply: () => true,
});
const registry = new Registry(() => [
  ...PLAIN.map((id) => entry(id, id, false)), ...CUSTOM.map((id) => entry(`custom.${id}`, id, true)),
]);
const transformers = ['groupingToMatrixTransformer', 'organizeFieldsTransformer', 'sortByTransformer',
  'filterFieldsByNameTransformer', 'renameFieldsTransformer', 'orderFieldsTransformer'];
standardTransformersRegistry.setInit(() => transformers.map((name) => standardTransformers[name])
  .map((transformation) => ({ id: transformation.id, name: transformation.name, transformation: async () => transformation, editor: () => null })));

const named = (alias, tags, column) => (alias || '$col')
  .replace(/\$tag_(\w+)/g, (_, tag) => tags[tag] ?? '').replace(/\$col/g, column);

// What Grafana's InfluxDB data source makes of an answer.
function framesOf(target, answer) {
  const ms = (ns) => ns / 1e6;
  if (target.resultFormat === 'table') {
    const columns = {};
    answer.forEach((series) => series.values.forEach((row) => {
      const all = { Time: ms(row[0]), ...series.tags };
      series.columns.slice(1).forEach((name, i) => { all[name] = row[i + 1]; });
      Object.keys(all).forEach((name) => { columns[name] = columns[name] ?? []; });
      Object.entries(columns).forEach(([name, values]) => values.push(all[name] ?? null));
    }));
    const fields = Object.entries(columns).map(([name, values]) => {
      const numeric = values.every((v) => v === null || typeof v === 'number');
      return { name, values, config: {}, type: name === 'Time' ? FieldType.time : numeric ? FieldType.number : FieldType.string };
    });
    return [toDataFrame({ refId: target.refId, fields })];
  }
  return answer.flatMap((series) => series.columns.slice(1).map((column, i) => {
    const name = named(target.alias, series.tags ?? {}, column);
    return toDataFrame({
      refId: target.refId, name,
      fields: [
        { name: 'Time', type: FieldType.time, config: {}, values: series.values.map((row) => ms(row[0])) },
        { name, type: FieldType.number, config: { displayNameFromDS: name }, values: series.values.map((row) => row[i + 1]) },
      ],
    });
  }));
}

function prepared({ panel, answers }) {
  const raw = panel.targets.flatMap((target, i) => framesOf(target, answers[i]));
  return new Promise((resolve) => {
    transformDataFrame(panel.transformations ?? [], raw).subscribe((frames) => resolve(applyFieldOverrides({
      data: frames, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry, theme, timeZone: 'utc',
      replaceVariables: (text) => text,
    })));
  });
}

function Body({ panel, frames, width, height, range }) {
  if (!frames.length && panel.type !== 'stat') {
    return <span>No data</span>;
  }
  if (panel.type === 'stat') {
    const values = getFieldDisplayValues({
      fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (text) => text,
      theme, data: frames, timeZone: 'utc',
    });
    return <BigValue width={width} height={height} theme={theme} value={values[0].display} colorMode={panel.options.colorMode}
      graphMode={panel.options.graphMode} textMode={panel.options.textMode} justifyMode={panel.options.justifyMode} />;
  }
  if (panel.type === 'table') {
    return <Table width={width} height={height} data={frames[0]} columnMinWidth={60} />;
  }
  return <TimeSeries width={width} height={height} frames={frames} timeRange={range} timeZone="utc" legend={panel.options.legend}
    options={panel.options} />;
}

const UNIT = 60;

function Board({ board, frames, range }) {
  return (
    <div data-board={board.name} style={{ display: 'flex', flexWrap: 'wrap', gap: 8, width: 24 * UNIT + 40, padding: 8, background: theme.colors.background.canvas }}>
      {board.panels.map(({ panel }, i) => (
        <div key={i} data-panel={panel.title}>
          <PanelChrome width={panel.gridPos.w * UNIT - 8} height={panel.gridPos.h * 34} title={panel.title}>
            {(width, height) => <Body panel={panel} frames={frames[i]} width={width} height={height} range={range} />}
          </PanelChrome>
        </div>
      ))}
    </div>
  );
}

async function main() {
  const { boards, from, to } = window.PANELS;
  const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
  const ready = await Promise.all(boards.map((board) => Promise.all(board.panels.map(prepared))));
  createRoot(document.getElementById('root')).render(
    <MemoryRouter>
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        {boards.map((board, i) => <Board key={board.name} board={board} frames={ready[i]} range={range} />)}
      </ThemeContext.Provider>
    </MemoryRouter>,
  );
  requestAnimationFrame(() => setTimeout(() => { document.title = 'rendered'; }, 0));
}

main().catch((error) => { document.title = `failed: ${error.stack}`; });
